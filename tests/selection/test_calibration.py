"""What criteria know of data: however it comes, in sums, and to the digit on small nets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur import Config, Pruner
from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.scoring.criteria import criteria
from secateur.scoring.grams import DAMPING
from secateur.scoring.statistics import STATISTICS, PerChannel, statistic
from tests.repair.kinds import hugging_face, low_rank, tokens
from tests.scoring.test_elimination import by_subsets

KNOWING = [n for n in criteria if criteria.asks(n, "forward") and not criteria.facts[n].experts]
UNITS = 16


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, UNITS), nn.ReLU(), nn.Linear(UNITS, 8)).double()


def data(batches: int = 4, rows: int = 32) -> list[Tensor]:
    draw = low_rank(torch.Generator().manual_seed(1), rows, 8)
    return [draw().double() for _ in range(batches)]


def hidden() -> Tensor:
    with torch.no_grad():
        return net()[:2](torch.cat(data()))


def scores(pruner: Pruner) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    each = pruner.selectables
    found = {s.name: pruner.statistics.score(s, pruner.tensors(), generator) for s in each}
    return {name: score.double() for name, score in found.items()}


def calibrated(*parts: Any, build: Callable[[], nn.Module] = net, **settings: Any) -> Pruner:
    settings = {"sparsity": 0.5, "normalize": "none", **settings}
    pruner = Pruner(build(), Config(**settings), parts[0][0])
    for part in parts:
        pruner.calibrate(part)
    return pruner


def close(one: Pruner, other: Pruner, tolerance: float = 1e-6) -> None:
    a, b = scores(one), scores(other)
    assert a.keys() == b.keys()
    for name, score in a.items():
        torch.testing.assert_close(score, b[name], rtol=tolerance, atol=tolerance)


# to the digit


def _left(j: int) -> Tensor:
    """Return the root mean square error without hidden unit j, the others refitted, damped."""
    x, weight = hidden(), net()[2].weight.detach()
    gram = x.T @ x / len(x)
    ridge = DAMPING * gram.diagonal().mean()
    others = [i for i in range(UNITS) if i != j]
    damped = gram + ridge * torch.eye(UNITS, dtype=gram.dtype)
    moved = weight[:, j, None] * torch.linalg.solve(damped[others][:, others], damped[others, j])
    gap = torch.zeros_like(weight)
    gap[:, others] = moved
    gap[:, j] = -weight[:, j]
    return ((gap @ damped) * gap).sum().sqrt()


def _in_turn() -> Tensor:
    """Return the root mean square error that each hidden unit adds, the cheapest first, damped."""
    x, weight = hidden(), net()[2].weight.detach()
    gram = x.T @ x / len(x)
    damped = gram + DAMPING * gram.diagonal().mean() * torch.eye(UNITS, dtype=gram.dtype)
    reader = weight, damped, torch.arange(UNITS)
    return by_subsets([reader], UNITS).sqrt()


def by_hand(name: str) -> Tensor:
    """Return the scores of the hidden units, from the rows that the second layer reads."""
    x, weight = hidden(), net()[2].weight.detach()
    norm = x.square().mean(0).sqrt()
    formulas: dict[str, Callable[[], Tensor]] = {
        "wanda": lambda: norm * weight.abs().sum(0),
        "activation": lambda: norm * weight.norm(dim=0),
        "energy": lambda: norm * weight.norm(dim=0),
        "obs": lambda: torch.stack([_left(j) for j in range(UNITS)]),
        "elimination": _in_turn,
        "fluctuation": lambda: x.var(0, correction=0) * weight.square().sum(0),
        "apoz": lambda: (x != 0).double().mean(0),
        "mean_activation": lambda: x.mean(0).abs(),
    }
    return formulas[name]()


@pytest.mark.parametrize("name", KNOWING)
def test_score_when_the_net_has_two_layers_then_it_is_that_by_hand(name):
    (found,) = scores(calibrated(data(), criterion=name)).values()
    torch.testing.assert_close(found, by_hand(name), rtol=1e-5, atol=1e-7)


# masks of any form

FORMS: dict[str, dict[str, Any]] = {
    "groups": {},
    "groups, globally": {"scope": "global"},
    "params": {"of": "params"},
    "macs": {"of": "macs"},
    "rows": {"granularity": "out_channel"},
    "elements": {"granularity": "element"},
    "elements, globally": {"granularity": "element", "scope": "global"},
    "2:4": {"granularity": "2:4", "sparsity": None},
    "tiles": {"granularity": [2, 2]},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KNOWING)
def test_decide_when_a_criterion_needs_data_then_masks_of_any_form_have_their_share(name, form):
    settings = FORMS[form]
    pruner = calibrated(data(), criterion=name, **settings)
    masks = pruner.decide()
    weights = [m for n, m in masks.items() if n.endswith("weight")]
    kept = sum(int(m.sum()) for m in weights) / sum(m.numel() for m in weights)
    assert 0.5 - 1 / UNITS <= kept <= 0.5, "a whole unit may be too much"
    if form == "2:4":
        assert all((m.view(-1, 4).sum(1) == 2).all() for m in weights)
    if form == "elements" and name == "wanda":
        assert all((m.sum(1) == m.shape[1] // 2).all() for m in weights)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", ["frequency", "activation"])
def test_decide_when_experts_go_then_what_data_says_decides(name):
    def build() -> nn.Module:
        return hugging_face(
            "Mixtral", vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
        )  # fmt: skip

    draw = tokens(torch.Generator().manual_seed(0), 8, 16)
    batches = [draw() for _ in range(3)]
    given = {"criterion": name, "names": ["*experts*"]}
    close(
        calibrated(batches, build=build, **given),
        calibrated(batches[:1], batches[1:], build=build, **given),
    )
    pruner = calibrated(batches, build=build, **given)
    pruner.decide()
    assert any(not keep.all() for keep in pruner.keeps.values())


# how the data comes


@pytest.mark.parametrize("name", KNOWING)
def test_calibrate_when_data_comes_in_any_way_then_scores_are_the_same(name, tmp_path):
    whole = data()
    one = calibrated(whole, criterion=name)
    close(one, calibrated(whole[:1], whole[1:], criterion=name))
    close(one, calibrated([torch.cat(whole)], criterion=name))
    close(one, calibrated([whole[i] for i in (2, 0, 3, 1)], criterion=name))
    close(one, calibrated([half for b in whole for half in b.split([7, 25])], criterion=name))
    broken = calibrated(whole[:2], criterion=name)
    broken.save(tmp_path / "run")
    resumed = Pruner(net(), broken.config, whole[0])
    resumed.load(tmp_path / "run")
    resumed.calibrate(whole[2:])
    close(one, resumed, 0)
    masks, others = one.decide(), resumed.decide()
    assert all(torch.equal(mask, others[n]) for n, mask in masks.items())


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("name", KNOWING)
def test_calibrate_when_batches_are_padded_then_scores_are_those_without_padding(name):
    def build() -> nn.Module:
        return hugging_face(
            "Bert", vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=24, max_position_embeddings=32,
        ).double()  # fmt: skip

    draw = tokens(torch.Generator().manual_seed(0), 8, 12)
    plain = [draw() for _ in range(2)]
    padded = [
        {
            "input_ids": torch.cat([b["input_ids"], torch.full((8, 5), 7)], 1),
            "attention_mask": torch.cat([torch.ones(8, 12), torch.zeros(8, 5)], 1),
        }
        for b in plain
    ]
    first, second = (calibrated(b, build=build, criterion=name) for b in (plain, padded))
    pooled = {n for n in scores(first) if "pooler" in n}
    assert not pooled
    close(first, second, 1e-5)
    if criteria.facts[name].error:
        several = (
            calibrated(b, build=build, criterion=name, normalize="output") for b in (plain, padded)
        )
        outputs, others = (p.statistics.calibration.outputs for p in several)
        assert {*outputs.sums} == {*others.sums}
        for tensor in {tensor for tensor, _ in outputs.sums}:
            assert outputs.variance(tensor) == pytest.approx(others.variance(tensor), rel=1e-5)
        assert any("output.dense" in tensor for tensor, _ in outputs.sums)


class Tied(nn.Module):
    """Into a space and back by one weight, which is read in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, UNITS), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(8, UNITS))

    def forward(self, x: Tensor) -> Tensor:
        there = self.first(x).relu() @ self.weight.T
        return self.last(there + torch.tanh(there) @ self.weight @ self.weight.T)


@pytest.mark.parametrize("name", [n for n in KNOWING if criteria.facts[n].error])
def test_calibrate_when_a_weight_is_read_in_two_ways_then_outputs_of_both_are_known(name, tmp_path):
    batches = [torch.randn(16, 8) for _ in range(4)]
    settings = {"criterion": name, "normalize": "output"}
    pruner = calibrated(batches, build=Tied, **settings)
    outputs = pruner.statistics.calibration.outputs
    assert len([tensor for tensor, _ in outputs.sums if tensor == "weight"]) == 2
    found = scores(pruner)
    assert all(bool(score.isfinite().all()) for score in found.values())
    pruner.save(tmp_path / "run")
    resumed = Pruner(pruner.model, pruner.config, batches[0])
    resumed.load(tmp_path / "run")
    assert all(torch.equal(score, found[n]) for n, score in scores(resumed).items())


# one class, one function


def test_criterion_when_a_statistic_is_made_of_one_class_then_it_prunes_and_is_known():
    class input_peak(PerChannel):
        def observe(self, reading: Any) -> dict[str, Tensor]:
            def fourth(x: Tensor, dims: tuple[int, ...]) -> Tensor:
                return x.double().pow(4).sum(dims)

            return {"fourth": reading.total(fourth), "seen": reading.whole()}

        def channels(self, sums: Any) -> Tensor:
            return (sums["fourth"] / sums["seen"]).pow(0.25)

    def peak(rows: Tensor, *, input_peak: Tensor) -> Tensor:
        return input_peak.mean(1)

    try:
        statistic(input_peak)
        criteria.register(of="readers")(peak)
        (found,) = scores(calibrated(data(), criterion="peak")).values()
        torch.testing.assert_close(found, hidden().pow(4).mean(0).pow(0.25), rtol=1e-5, atol=1e-7)
        result = sc.prune(net(), data()[0], 0.5, "peak", data=data(), repair="none")
        (kept,) = result.plan.keep.values()
        assert set(kept) == set(found.argsort()[UNITS // 2 :].tolist())
    finally:
        STATISTICS.pop("input_peak", None)
        criteria._functions.pop("peak", None)
        criteria.facts.pop("peak", None)
    assert "peak" not in criteria


# what is refused


@pytest.mark.parametrize("name", KNOWING)
def test_decide_when_no_data_was_given_then_that_is_said(name):
    with pytest.raises(ConfigError, match="calibrate"):
        Pruner(net(), Config(criterion=name, sparsity=0.5), data()[0]).step()


@pytest.mark.parametrize("given", [[], iter([]), (x for x in ())])
def test_calibrate_when_there_are_no_batches_then_that_is_said(given):
    pruner = Pruner(net(), Config(criterion="wanda", sparsity=0.5), data()[0])
    with pytest.raises(ConfigError, match="no batches"):
        pruner.calibrate(given)


def test_calibrate_when_one_batch_fails_then_nothing_of_the_call_counts():
    pruner = calibrated(data(), criterion="activation")
    before = scores(pruner)
    with pytest.raises(ConfigError, match="batch 1"):
        pruner.calibrate([data()[0] * 9, torch.zeros(2, 5).double()])
    after = scores(pruner)
    assert all(torch.equal(score, after[n]) for n, score in before.items())
    pruner.calibrate(data())
    close(pruner, calibrated(data(), criterion="activation"))


@pytest.mark.parametrize("criterion", ["l2", "wanda", "apoz"])
def test_output_when_a_criterion_is_no_error_of_outputs_then_those_that_are_are_named(criterion):
    settings = {"normalize": "output", "scope": "global", "criterion": criterion}
    data = [torch.randn(8, 6) for _ in range(2)]
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ConfigError, match=f"activation, .*obs.*not '{criterion}'"):
        sc.prune(model, data[0], 0.5, data=data, **settings)


class Residual(nn.Module):
    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, UNITS), nn.Linear(UNITS, 8)
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.down(torch.relu(self.up(x))))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("criterion", ["activation", "obs", "elimination"])
def test_output_when_masks_are_on_then_it_is_that_of_the_model_whose_weights_are_zero(
    criterion: str, norm: bool
) -> None:
    settings = {"normalize": "output", "criterion": criterion, "sparsity": 0.5}
    torch.manual_seed(0)
    dense = nn.Sequential(Residual(norm), Residual(norm), nn.Linear(8, 3)).double()
    batches = data()
    pruner = Pruner(dense, Config(**settings, steps=3, schedule="linear"), batches[0])
    for _ in range(2):  # of three
        pruner.calibrate(batches)
        pruner.step()
    pruner.calibrate(batches)
    zeros = copy.deepcopy(dense)
    masking.take_off(zeros, bake=True)
    other = Pruner(zeros, Config(**settings), batches[0])
    other.calibrate(batches)
    for weight in ("0.down.weight", "1.down.weight"):
        found, wanted = (p.statistics.calibration.outputs.variance(weight) for p in (pruner, other))
        assert found == pytest.approx(wanted, rel=1e-9)
    pruner.step()
    assert pruner.finish().verification.passed


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.beside = nn.Linear(8, UNITS), nn.Linear(UNITS, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x))) + self.beside(x)


def test_output_when_two_layers_are_added_then_both_are_beside_their_sum() -> None:
    model, batches = nn.Sequential(Projected(), nn.ReLU(), nn.Linear(6, 3)).double(), data()
    pruner = Pruner(model, Config(criterion="obs", normalize="output", sparsity=0.5), batches[0])
    pruner.calibrate(batches)
    with torch.no_grad():
        wanted = float(model[0](torch.cat(batches)).var(0, correction=0).sum())
    outputs = pruner.statistics.calibration.outputs
    for name in ("0.down.weight", "0.beside.weight"):
        assert outputs.variance(name) == pytest.approx(wanted, rel=1e-6)
    pruner.step()
    assert pruner.finish().verification.passed
