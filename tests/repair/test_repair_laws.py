"""What holds of a repair of a whole model, whatever the model is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur import Config, Pruner
from secateur.errors import ConfigError, SecateurError, UnknownNameError
from secateur.masks import masking
from secateur.repair import repairs
from secateur.repair.quality import distance
from tests.repair.kinds import hugging_face, low_rank, tokens


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3)
        return nn.Sequential(*layers).to(dtype)


def data(batches: int = 8, rows: int = 32, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = low_rank(generator, rows, 6)
    return [draw().to(dtype) for _ in range(batches)]


def repaired(
    model: nn.Module, batches: list[Any], how: str = "least_squares", **settings: Any
) -> Pruner:
    """Return the pruner of a model that it repaired in place."""
    settings = {"criterion": "activation", "sparsity": 0.4, **settings}
    pruner = Pruner(model, Config(**settings), batches[0])
    pruner.calibrate(batches)
    pruner.decide()
    pruner.repair(batches, how)
    return pruner


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def masked(pruner: Pruner) -> dict[str, Tensor]:
    """Return the weights of a repaired model, without what is masked."""
    return {
        n: p.detach() * pruner.masks[n] if n in pruner.masks else p.detach()
        for n, p in pruner.model.named_parameters()
    }


# what is not pruned


@pytest.mark.parametrize("how", [*repairs])
def test_repair_when_a_readers_columns_all_stay_then_it_is_unchanged(how):
    model, before = net(), tensors(net())
    batches = [batch + 1 for batch in data()]  # means, which "bias" makes up for
    repaired(model, batches, how, names=["0"])
    after = tensors(model)
    behind = ("4.weight", "4.bias") if how == "bias" else ()  # others make up for more there
    for name in ("0.weight", "0.bias", *behind):
        assert torch.equal(after[name], before[name]), name
    assert not torch.equal(after["2.bias"], before["2.bias"])


@pytest.mark.parametrize("how", [*repairs])
def test_repair_when_nothing_goes_then_nothing_changes(how):
    model, before = net(), tensors(net())
    record = repaired(model, data(), how, sparsity=0.0).repaired
    assert all(torch.equal(t, before[n]) for n, t in tensors(model).items())
    assert record is not None
    assert (record.before.error, record.after.error, record.refits) == (0.0, 0.0, ())


def test_repair_when_called_then_what_is_below_the_masks_is_as_it_was():
    model, before = net(), tensors(net())
    pruner = repaired(model, data())
    for name, mask in pruner.masks.items():
        assert torch.equal(model.get_parameter(name)[~mask], before[name][~mask]), name


# what others can say


def doubled(kind: Callable[..., nn.Module], rank: int) -> nn.Sequential:
    """A layer of 8 channels, of which 4, 5 and 6 are made of 0 to 3, and a reader of it."""
    torch.manual_seed(0)
    one = (1,) * rank
    layers = [kind(3, 8, *one[:1]), kind(8, 4, *(3,) * bool(rank))]
    model = nn.Sequential(*layers).double()
    with torch.no_grad():
        weight, bias = model[0].weight, model[0].bias
        mixed = torch.randn(3, 4, dtype=torch.float64)
        weight[4:7] = torch.tensordot(mixed, weight[:4], dims=1)
        bias[4:7] = mixed @ bias[:4] + 1
    return model


@pytest.mark.parametrize(
    ("kind", "rank"), [(nn.Linear, 0), (nn.Conv1d, 1), (nn.Conv2d, 2), (nn.Conv3d, 3)]
)
def test_repair_when_what_goes_is_a_combination_of_what_stays_then_no_output_changes(kind, rank):
    model = doubled(kind, rank)
    dense = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(64, 3, *(6,) * rank, generator=generator).double() for _ in range(4)]
    pruner = Pruner(model, Config(sparsity=0.375, criterion="l2"), batches[0])
    keep = torch.ones(8, dtype=torch.bool)
    keep[4:7] = False
    pruner.decide()
    (selectable,) = pruner.selectables
    name = selectable.name
    pruner.decision.keeps[name] = keep
    pruner.decision.masks.update(selectable.masks(keep, pruner.tensors()))
    pruner.repair(batches)
    result = pruner.finish(inplace=False)
    x = torch.randn(16, 3, *(6,) * rank, generator=generator).double()
    with torch.no_grad():
        expected = dense(x)
        gap = (result.model(x) - expected).abs().max() / expected.abs().max()
    assert result.plan.counts == {name: 5}
    assert gap < 1e-6


# how the data comes


def close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=tolerance, atol=tolerance)


def weights(
    batches: list[Any], how: str, build: Callable[[], nn.Module] = net
) -> dict[str, Tensor]:
    return masked(repaired(build(), batches, how))


@pytest.mark.parametrize("how", [*repairs])
def test_repair_when_batches_are_split_then_its_weights_are_the_same(how):
    whole = data()
    eight = [half for batch in whole for half in batch.split(16)]
    # of four batches one judges: the rows that judge are those of batches 3 and 7 in both
    fit = [b for i, b in enumerate(eight) if i // 2 % 4 != 3]
    held = [b for i, b in enumerate(eight) if i // 2 % 4 == 3]
    mixed = [b for i in range(4) for b in (*fit[3 * i : 3 * i + 3], held[i])]
    close(weights(whole, how), weights(mixed, how))


@pytest.mark.parametrize("how", [*repairs])
def test_repair_when_batches_come_in_another_order_then_its_weights_are_the_same(how):
    batches = data()
    other = [batches[i] for i in (6, 0, 5, 7, 2, 1, 4, 3)]
    close(weights(batches, how), weights(other, how))


def test_repair_when_data_is_a_generator_then_it_is_that_of_the_list():
    pruners = []
    for given in (data(), (batch for batch in data())):
        pruner = Pruner(net(), Config(sparsity=0.4), data()[0])
        pruner.decide()
        pruner.repair(given)
        pruners.append(pruner)
    close(*(masked(pruner) for pruner in pruners), tolerance=0)


def bert() -> nn.Module:
    return hugging_face(
        "Bert", vocab_size=48, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=32,
    ).double()  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("build", [bert])
def test_repair_when_batches_are_padded_then_it_is_that_without_padding(build, side):
    draw = tokens(torch.Generator().manual_seed(0), 8, 12)
    plain = [{**batch, "attention_mask": torch.ones(8, 12)} for batch in (draw() for _ in range(4))]
    padded = []
    for batch in plain:
        ids, pad = batch["input_ids"], torch.full((8, 5), 7)
        there, none = torch.ones(8, 12), torch.zeros(8, 5)
        parts = (ids, pad), (there, none)
        if side == "left":
            parts = tuple(part[::-1] for part in parts)
        given = {
            n: torch.cat(p, 1) for n, p in zip(("input_ids", "attention_mask"), parts, strict=True)
        }
        place = torch.arange(12)
        pads = torch.zeros(5, dtype=torch.long)
        order = (place, pads) if side == "right" else (pads, place)
        given["position_ids"] = torch.cat(order).expand(8, -1)
        padded.append(given)
    for batch in plain:
        batch["position_ids"] = torch.arange(12).expand(8, -1)
    found = [weights(batches, "least_squares", build) for batches in (plain, padded)]
    for each in found:  # what reads the first token alone reads padding where that is on the left
        for name in [name for name in each if "pooler" in name]:
            del each[name]
    close(*found, 1e-7)


def test_distance_when_samples_come_one_by_one_then_it_is_that_of_all_at_once():
    dense, other, x = net(), net(), torch.cat(data(2))
    with torch.no_grad():
        other[4].weight.mul_(1.1)
        a, b = dense(x), other(x)
    expected = float(((a - b).square().sum() / (a - a.mean(0)).square().sum()).sqrt())
    for size in (1, 7, 64):
        assert distance(dense, other, x.split(size)).error == pytest.approx(expected, rel=1e-9)


# when, and how often


def test_repair_when_these_masks_were_repaired_already_then_that_is_said():
    pruner = repaired(net(), data())
    after = tensors(pruner.model)
    with pytest.raises(ConfigError, match="repaired already"):
        pruner.repair(data())
    assert all(torch.equal(t, after[n]) for n, t in tensors(pruner.model).items())


def test_repair_when_masks_have_grown_then_the_model_before_is_what_it_is_held_to(tmp_path):
    config = Config(criterion="activation", sparsity=0.6, schedule="linear", steps=2)
    pruner = Pruner(net(), config, data()[0])
    x = torch.cat(data(20)[12:])
    for first in (True, False):
        pruner.calibrate(data())
        if not first:
            with torch.no_grad():  # it trains: what is masked does not
                for name, mask in pruner.masks.items():
                    dict(pruner.model.named_parameters())[name][mask] *= 1.5
            before = pruner.model(x).detach()
        pruner.step()
        if not first:
            left = float((pruner.model(x).detach() - before).square().mean().sqrt())
            pruner.save(tmp_path / "run")
            pruner.load(tmp_path / "run")
        record = pruner.repair(data())
        assert record.after.error < record.before.error
    spread = float(before.sub(before.mean(0)).square().mean().sqrt())
    with torch.no_grad():
        now = float((pruner.model(x) - before).square().mean().sqrt())
    assert now < 0.8 * left
    assert now / spread == pytest.approx(record.after.error, rel=0.3)


def test_repair_when_masks_are_on_then_they_stay_on_and_hold_its_weights():
    model = net()
    pruner = Pruner(model, Config(criterion="activation", sparsity=0.4), data()[0])
    pruner.calibrate(data())
    pruner.step()
    x = torch.cat(data(20)[12:])
    dense = net()
    with torch.no_grad():
        before = float((model(x) - dense(x)).square().mean())
        pruner.repair(data())
        after = float((model(x) - dense(x)).square().mean())
    assert masking.is_masked(model)
    assert after < before
    close(masked(pruner), weights(data(), "least_squares"))
    assert all(not model.state_dict()[n][~m].any() for n, m in pruner.masks.items())


# what is refused


def test_repair_when_nothing_is_masked_yet_then_that_is_said():
    pruner = Pruner(net(), Config(sparsity=0.4), data()[0])
    with pytest.raises(ConfigError, match=r"call step\(\) or decide\(\) before repair"):
        pruner.repair(data())


def test_prune_when_a_repair_has_no_data_then_that_is_said():
    with pytest.raises(ConfigError, match="needs data="):
        sc.prune(net(), data()[0], 0.4, repair="least_squares")


@pytest.mark.parametrize("batches", [None, "data"])
def test_prune_when_there_is_no_such_repair_then_the_nearest_name_is_said(batches):
    with pytest.raises(UnknownNameError, match="least_squares"):
        sc.prune(net(), data()[0], 0.4, repair="least_square", data=batches and data())


@pytest.mark.parametrize("how", [*repairs])
def test_repair_when_data_fails_then_the_model_is_as_it_was(how):
    model, before = net(), tensors(net())
    pruner = Pruner(model, Config(sparsity=0.4), data()[0])
    pruner.decide()
    for bad, words in (
        ([], "no batches"),
        ([*data(), torch.zeros(2, 5).double()], "batch 8|this batch"),
        ([data()[0], data()[0] * float("nan")], "batch 1"),
        (data()[0], "split"),
    ):
        with pytest.raises(SecateurError, match=words):
            pruner.repair(bad, how)
        assert all(torch.equal(t, before[n]) for n, t in tensors(model).items()), words
        assert not masking.is_masked(model)
    assert pruner.repaired is None


def test_prune_when_the_check_fails_in_place_then_weights_are_those_before(monkeypatch):
    model, before = net(), tensors(net())

    def fails(*_: Any, **__: Any) -> None:
        raise sc.errors.VerificationError("not equal")

    monkeypatch.setattr("secateur.pruner.candidates.cut_and_verify", fails)
    with pytest.raises(sc.errors.VerificationError):
        sc.prune(model, data()[0], 0.4, data=data(), inplace=True)
    assert all(torch.equal(t, before[n]) for n, t in tensors(model).items())


def test_repair_when_the_example_has_no_padding_and_the_data_has_then_nothing_is_overlooked():
    pytest.importorskip("transformers")
    settings = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    draw = torch.Generator().manual_seed(0)

    def padded(rows: int) -> dict[str, Tensor]:
        ids = torch.randint(0, 48, (rows, 9), generator=draw)
        lengths = torch.randint(3, 9, (rows, 1), generator=draw)
        return {"input_ids": ids, "attention_mask": (torch.arange(9) < lengths).long()}

    data = [padded(16) for _ in range(8)]
    plain = {"input_ids": data[0]["input_ids"], "attention_mask": torch.ones(16, 9).long()}
    found = []
    for example in (plain, data[0]):
        model = hugging_face("Bert", num_hidden_layers=2, vocab_size=48, **settings)
        config = Config(criterion="l2", sparsity=0.5, names=["*intermediate*"])
        pruner = Pruner(model, config, example)
        pruner.decide()
        record = pruner.repair(data)
        found.append((record.after.error, tensors(model)))
    (one, first), (other, second) = found
    assert one == pytest.approx(other, rel=1e-6)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-5, atol=1e-6)


def test_repair_when_one_row_is_held_out_then_its_distance_is_said_to_be_unknown():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    few, more = ([torch.randn(rows, 8) for _ in range(6)] for rows in (1, 4))
    said = sc.prune(model, torch.randn(2, 8), 0.8, data=few).repair.notes
    assert any("not known" in note for note in said)
    assert not any("zeros" in note for note in said)
    said = sc.prune(model, torch.randn(2, 8), 0.8, data=more).repair.notes
    assert not any("not known" in note for note in said)
