"""Estimated errors: exact where the model is linear, and no trace of how they were found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError
from secateur.repair import estimated_errors, output_error


class Pooled(nn.Module):
    """A linear model of one output: the mean over all places of what its layers make."""

    def __init__(self, *layers: nn.Module, out: int):
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(out, 1)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.layers(x)
        if attention_mask is not None:
            x = (x * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        elif x.ndim == 4:
            x = x.mean((2, 3))
        elif x.ndim == 3:
            x = x.mean(2) if isinstance(self.layers[-1], nn.Conv1d) else x.mean(1)
        return self.head(x)


def conv(*sizes: int, **options: Any) -> nn.Module:
    return nn.Conv2d(*sizes, 3, padding=1, **options)  # type: ignore[arg-type]


FORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: Pooled(nn.Linear(5, 8), nn.Linear(8, 6), out=6), (16, 5)),
    "tokens": (lambda: Pooled(nn.Linear(5, 8), nn.Linear(8, 6), out=6), (16, 7, 5)),
    "no bias": (lambda: Pooled(nn.Linear(5, 8, bias=False), nn.Linear(8, 6), out=6), (16, 5)),
    "convolution": (lambda: Pooled(conv(3, 8), conv(8, 6), out=6), (16, 3, 6, 6)),
    "stride": (lambda: Pooled(conv(3, 8), conv(8, 6, stride=2), out=6), (16, 3, 7, 7)),
    "groups": (lambda: Pooled(conv(3, 8), conv(8, 6, groups=2), out=6), (16, 3, 5, 5)),
    "depthwise": (
        lambda: Pooled(conv(3, 8), conv(8, 8, groups=8), nn.Conv2d(8, 6, 1), out=6),
        (16, 3, 5, 5),
    ),
    "transposed": (
        lambda: Pooled(conv(3, 8), nn.ConvTranspose2d(8, 6, 3, 2), out=6),
        (16, 3, 4, 4),
    ),
    "one dimension": (
        lambda: Pooled(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 6, 3), out=6),
        (16, 3, 9),
    ),
}


def cut(model: nn.Module, x: Any, gone: int = 2) -> tuple[sc.Structure, dict[str, Tensor]]:
    """Return the structure, and the masks of a group without some of its positions."""
    structure = sc.analyze(model, x)
    group = next(group for group in structure.groups if group.size > gone)
    keep = torch.arange(group.size) >= gone
    return structure, dict(sc.Plan.from_keeps(structure, {group.name: keep}).masks(structure))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_estimate_when_the_model_is_linear_then_is_what_is_measured(
    form: str, frozen: bool
) -> None:
    torch.manual_seed(0)
    build, shape = FORMS[form]
    model = build().eval().requires_grad_(not frozen)
    batches = [torch.randn(shape) for _ in range(3)]
    structure, masks = cut(model, batches[0])
    (found,) = estimated_errors(model, structure, [masks], batches)
    measured = output_error(model, masks, structure, batches, None, squares=True)
    assert found == pytest.approx(measured, rel=1e-4)


class Scored(nn.Module):
    """Queries times keys, and their sum over places: of each alone it is linear."""

    def __init__(self, form: str, width: int = 6):
        super().__init__()
        self.form = form
        bias = form != "no bias"
        if form == "convolution":
            self.q, self.k = nn.Conv1d(5, width, 3), nn.Conv1d(5, width, 1, bias=bias)
        elif form == "fused":
            self.qk = nn.Linear(5, 2 * width)
        else:
            self.q, self.k = (nn.Linear(5, width, bias=bias) for _ in range(2))
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "fused":
            q, k = self.qk(x).chunk(2, -1)
        elif self.form == "convolution":
            q, k = self.q(x.mT).mT, self.k(x.mT).mT
        else:
            q, k = self.q(x), self.k(x)
        if self.form == "in place":
            q *= 0.5
            k.add_(0)
        if self.form == "heads":
            q, k = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in (q, k))
            scores = (q @ k.mT).sum((1, 2, 3))
        elif self.form == "einsum":
            scores = torch.einsum("bqd,bkd->bqk", q, k).sum((1, 2))
        else:
            scores = (q @ k.mT).sum((1, 2))
        return self.head(scores[:, None])


@pytest.mark.parametrize(
    "form", ["linear", "no bias", "fused", "convolution", "in place", "heads", "einsum"]
)
def test_estimate_when_outputs_meet_in_a_product_then_is_what_is_measured(form: str) -> None:
    torch.manual_seed(0)
    model = Scored(form).eval()
    batches = [torch.randn(16, 7, 5) for _ in range(2)]
    structure = sc.analyze(model, batches[0])
    group = min(structure.groups, key=lambda group: group.size)  # of heads: the width in each
    keep = torch.arange(group.size) >= 1
    masks = dict(sc.Plan.from_keeps(structure, {group.name: keep}).masks(structure))
    products = {name: mask for name, mask in masks.items() if mask.ndim > 1}
    (found,) = estimated_errors(model, structure, [masks], batches, None, [products])
    measured = output_error(model, masks, structure, batches, None, squares=True)
    assert measured > 1e-4
    assert found == pytest.approx(measured, rel=1e-4)
    assert estimated_errors(model, structure, [masks], batches) == [None]


def test_estimate_when_positions_are_padding_then_these_do_not_count() -> None:
    torch.manual_seed(0)
    model = Pooled(nn.Linear(5, 8, bias=False), nn.Linear(8, 6), out=6).eval()
    valid = torch.arange(7) < torch.randint(2, 7, (16, 1))
    batch = {"x": torch.randn(16, 7, 5), "attention_mask": valid.long()}
    structure, masks = cut(model, batch)
    (found,) = estimated_errors(model, structure, [masks], [batch])
    assert found == pytest.approx(
        output_error(model, masks, structure, [batch], None, squares=True), rel=1e-4
    )
    noisy = {**batch, "x": torch.where(valid[..., None], batch["x"], 100.0)}
    again = estimated_errors(model, structure, [masks], [noisy], "least_squares")
    assert again == pytest.approx(
        estimated_errors(model, structure, [masks], [batch], "least_squares"), rel=1e-6
    )


@pytest.mark.parametrize("form", ["linear", "tokens", "convolution", "stride"])
def test_estimate_when_a_repair_follows_then_is_near_what_is_measured_after_it(form: str) -> None:
    torch.manual_seed(0)
    build, shape = FORMS[form]
    model = build().eval()
    batches = [torch.randn(64, *shape[1:]) for _ in range(8)]
    structure, masks = cut(model, batches[0])
    plain, repaired = (
        estimated_errors(model, structure, [masks], batches, how)[0]
        for how in (None, "least_squares")
    )
    assert plain is not None
    assert repaired is not None
    measured = output_error(model, masks, structure, batches, "least_squares", squares=True)
    assert repaired < plain
    assert measured / 2 - 1e-4 < repaired < 3 * measured + 1e-4  # layers behind help besides


def test_estimate_when_many_cuts_are_asked_for_then_each_is_what_it_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    build, shape = FORMS["convolution"]
    model, batches = build().eval(), [torch.randn(shape)]
    structure = cut(model, batches[0])[0]
    cuts = [cut(model, batches[0], gone)[1] for gone in (1, 3, 6)]
    together = estimated_errors(model, structure, cuts, batches, "least_squares")
    assert together == sorted(together, key=lambda error: error or 0.0)
    alone = [estimated_errors(model, structure, [c], batches, "least_squares")[0] for c in cuts]
    assert together == pytest.approx(alone, rel=1e-6)
    monkeypatch.setattr("secateur.repair.estimates.MOST", 1)  # one cut at a time fits
    assert estimated_errors(model, structure, cuts, batches, "least_squares") == pytest.approx(
        alone, rel=1e-6
    )


def test_estimate_when_operations_work_in_place_then_slopes_are_of_what_was_made() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 1))
    inplace = copy.deepcopy(plain)
    for module in inplace:
        if isinstance(module, nn.ReLU):
            module.inplace = True
    batches = [torch.randn(16, 5) for _ in range(2)]
    structure, masks = cut(plain, batches[0])
    found = [estimated_errors(m, structure, [masks], batches)[0] for m in (plain, inplace)]
    assert found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_estimate_when_it_is_over_then_the_model_is_as_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    model[0].weight.requires_grad_(False)
    model(torch.randn(4, 5)).sum().backward()
    before = copy.deepcopy(model)
    grads = {name: p.grad for name, p in model.named_parameters()}
    drawn = torch.get_rng_state()
    structure, masks = cut(model, torch.randn(4, 5))
    torch.set_rng_state(drawn)
    estimated_errors(model, structure, [masks], [torch.ones(4, 5)], "least_squares")
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    for (name, ours), theirs in zip(model.named_parameters(), before.parameters(), strict=True):
        assert ours.requires_grad == theirs.requires_grad, name
        assert torch.equal(ours, theirs), name
    assert all(map(torch.equal, model.buffers(), before.buffers()))
    assert all(module.training for module in model.modules())


class Rounded(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return F.one_hot(super().forward(x).argmax(1), 3).float()


def test_estimate_when_no_gradient_comes_back_then_says_what_to_take() -> None:
    model = Rounded(nn.Linear(5, 8), nn.Linear(8, 3)).eval()
    plain = nn.Sequential(*model)
    structure, masks = cut(plain, torch.randn(4, 5))
    with pytest.raises(ConfigError, match="allocate='error'"):
        estimated_errors(model, structure, [masks], [torch.randn(4, 5)])


class Apart(nn.Sequential):
    """Runs its first two layers without gradients, as frozen backbones do."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self[1](self[0](x))
        return self[3](self[2](x))


def test_estimate_when_a_part_runs_without_gradients_then_says_nothing_of_it() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 7), nn.Linear(7, 3)]
    x = torch.randn(16, 5)
    masks = []
    structure = sc.analyze(Apart(*layers).eval(), x)
    for group in structure.groups:
        plan = sc.Plan.from_keeps(structure, {group.name: torch.arange(group.size) > 1})
        masks.append(dict(plan.masks(structure)))
    first, second, third = estimated_errors(Apart(*layers).eval(), structure, masks, [x])
    assert first is None
    plain = estimated_errors(nn.Sequential(*layers).eval(), structure, masks, [x])
    assert [second, third] == pytest.approx(plain[1:])


def test_estimate_when_nothing_that_is_read_goes_then_says_nothing() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3)).eval()
    structure, masks = cut(model, torch.randn(4, 5))
    only = {"0.weight": masks["0.weight"]}
    assert estimated_errors(model, structure, [only], [torch.randn(4, 5)]) == [None]
    ragged = {"1.weight": torch.tensor([[True, False] * 4, [False, True] * 4, [True, False] * 4])}
    assert estimated_errors(model, structure, [ragged], [torch.randn(4, 5)]) == [None]
