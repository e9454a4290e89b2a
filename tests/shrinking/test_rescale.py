"""Averages over a pruned axis whose factor something takes up: norms that are exact to prune."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc

WIDTH, KEPT = 12, (0, 2, 3, 6, 7, 8, 11)


class Hand(nn.Module):
    """A norm that is a function of itself and of what it reads."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH))
        self.eps = 1e-2
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


class Bare(Hand):
    def __init__(self, compute: Callable[[Any, Tensor], Tensor]):
        super().__init__(compute)
        del self.weight


def mean(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


def root(m: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(mean(x) + m.eps)


def finer(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


EXACT: dict[str, Callable[[], nn.Module]] = {
    "nn.RMSNorm": lambda: nn.RMSNorm(WIDTH, eps=1e-2),
    "nn.RMSNorm without affine": lambda: nn.RMSNorm(WIDTH, 1e-2, elementwise_affine=False),
    "F.rms_norm": lambda: Hand(lambda m, x: F.rms_norm(x, x.shape[-1:], m.weight, m.eps)),
    "rsqrt": lambda: Hand(lambda m, x: root(m, x) * m.weight),
    "product and quotient": lambda: Hand(
        lambda m, x: m.weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + m.eps))
    ),
    "epsilon first": lambda: Hand(lambda m, x: m.weight * x / (m.eps + mean(x)).sqrt()),
    "epsilon after the root": lambda: Hand(lambda m, x: m.weight * x / (mean(x).sqrt() + m.eps)),
    "epsilon as a bound": lambda: Hand(lambda m, x: m.weight * x / mean(x).clamp_min(m.eps).sqrt()),
    "no epsilon": lambda: Hand(lambda m, x: m.weight * x * mean(x).rsqrt()),
    "in place": lambda: Hand(lambda m, x: x * mean(x).add_(m.eps).rsqrt_() * m.weight),
    "one plus the scale": lambda: Hand(
        lambda m, x: (root(m, x.to(finer(x))) * (1.0 + m.weight.to(finer(x)))).type_as(x)
    ),
    "twice the scale and a half": lambda: Hand(lambda m, x: root(m, x) * (2 * (m.weight + 0.5))),
    "no scale": lambda: Bare(root),
    "a scale that is computed": lambda: Hand(lambda m, x: root(m, x) * m.weight.exp()),
    "the same scale twice": lambda: Hand(lambda m, x: root(m, root(m, x) * m.weight) * m.weight),
    "a mean of magnitudes": lambda: Hand(
        lambda m, x: m.weight * x / (x.abs().mean(-1, keepdim=True) + m.eps)
    ),
    "no mean": lambda: Hand(lambda m, x: F.normalize(x, dim=-1, eps=m.eps) * 3.4 * m.weight),
}

INEXACT: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a literal epsilon": (
        lambda m, x: x * torch.rsqrt(mean(x) + 1e-2) * m.weight,
        "0.01 is added, which no attribute of the model holds",
    ),
    "an epsilon of the type": (
        lambda m, x: x * torch.rsqrt(mean(x) + torch.finfo(torch.float32).eps) * m.weight,
        "which no attribute of the model holds",
    ),
    "an epsilon that is computed": (
        lambda m, x: x * torch.rsqrt(mean(x) + 2 * m.eps) * m.weight,
        "0.02 is added, which no attribute of the model holds",
    ),
    "an epsilon that is read elsewhere": (
        lambda m, x: root(m, x) * m.weight + m.eps,
        "n.eps is added, which is read elsewhere too and must stay",
    ),
    "an epsilon that something is computed of": (
        lambda m, x: root(m, x) * m.weight * m.eps**0.5,
        "n.eps is added, which is read elsewhere too and must stay",
    ),
    "a scale that is read elsewhere, and nothing after it": (
        lambda m, x: torch.tanh(root(m, x) * m.weight) + m.weight,
        "it is not proportional to what it reads (aten.tanh",
    ),
    "its own input is added": (
        lambda m, x: root(m, x) * m.weight.exp() + x,
        "what it is added to has another factor (aten.add.Tensor",
    ),
    "a layer norm by hand": (
        lambda m, x: root(m, x - x.mean(-1, keepdim=True)) * m.weight,
        "what it is added to has another factor (aten.sub.Tensor",
    ),
    "a gate": (
        lambda m, x: x * x.mean(-1, keepdim=True).sigmoid() * m.weight,
        "it is not proportional to what it reads (aten.sigmoid",
    ),
    "written into another tensor": (
        lambda m, x: torch.zeros_like(x).copy_(root(m, x)).mul_(m.weight.exp()).tanh(),
        "it is not proportional",
    ),
}


class Net(nn.Module):
    def __init__(self, norm: nn.Module):
        super().__init__()
        self.a = nn.Linear(5, WIDTH)
        self.n = norm
        self.b = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.n(self.a(x)))


def built(norm: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> tuple[Net, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net(norm()).to(dtype).eval(), torch.randn(4, 5, dtype=dtype)


def masked(model: nn.Module, result: sc.Result) -> nn.Module:
    """Return the dense model under the masks, with the scales and epsilons that it had."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in result.masks.items():
            model.get_parameter(name).mul_(mask)
    return model


def gap(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", EXACT)
def test_norm_when_its_axis_is_cut_then_scale_and_epsilon_take_the_factor_up(form, dtype, tmp_path):
    model, x = built(EXACT[form], dtype)
    before = copy.deepcopy(model)
    result = sc.apply_plan(model, sc.Plan({"a": KEPT}), x)
    assert result.structure["a"].exact
    assert result.verification.exact
    assert result.verification.difference < 1e-9  # in float64: no rounding of a scale counts
    allowed = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert gap(result.model(x), masked(model, result)(x)) < allowed
    said = [note for note in result.notes if "rounded to bfloat16 (by 4e-03" in note]
    assert len(said) == (dtype == torch.bfloat16 and form != "no mean")
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True)
    )
    result.save(tmp_path)
    loaded = sc.load_pruned(tmp_path, copy.deepcopy(model))
    assert torch.equal(loaded(x), result.model(x))
    twice = sc.apply_plan(result.model, sc.Plan({"a": (0, 1, 4)}), x)
    assert twice.verification.exact
    assert twice.verification.difference < 1e-9
    twice.save(tmp_path)
    assert torch.equal(sc.load_pruned(tmp_path, copy.deepcopy(model))(x), twice.model(x))


@pytest.mark.parametrize("form", INEXACT)
def test_norm_when_nothing_takes_the_factor_up_then_it_stays_inexact_and_says_why(form):
    compute, why = INEXACT[form]
    model, x = built(lambda: Hand(compute))
    group = sc.analyze(model, x)["a"]
    assert not group.exact
    assert why in str(group.inexact)
    assert not sc.analyze(model, x).inferred.rescaled
    result = sc.apply_plan(model, sc.Plan({"a": KEPT}), x)
    assert not result.verification.exact
    assert result.verification.difference > 1e-3
    assert result.model.n.eps == model.n.eps


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(sorted(EXACT)),
    st.sets(st.integers(0, WIDTH - 1), min_size=1),
    st.floats(1e-8, 0.9),
    st.integers(0, 9999),
)
def test_norm_when_any_positions_are_kept_then_smaller_is_masked(form, kept, eps, seed):
    torch.manual_seed(seed)
    model = Net(EXACT[form]()).double().eval()
    if getattr(model.n, "eps", None) is not None:
        model.n.eps = eps
    x = torch.randn(3, 5).double()
    result = sc.apply_plan(model, sc.Plan({"a": tuple(sorted(kept))}), x)
    assert gap(result.model(x), masked(model, result)(x)) < 1e-11


def test_norm_when_its_epsilon_is_that_of_its_type_then_it_is_inexact():
    model = Net(nn.RMSNorm(WIDTH)).eval()  # in another type it would be another number
    (group,) = (g for g in sc.analyze(model, torch.randn(3, 5)).groups if g.name == "a")
    assert not group.exact


class Shared(nn.Module):
    """Two norms, of one width or of two, that read one epsilon from a config."""

    def __init__(self, other: int):
        super().__init__()
        self.config = type("Config", (), {})()
        self.config.eps = 1e-2
        self.a, self.c = nn.Linear(5, WIDTH), nn.Linear(WIDTH, other)
        self.one = nn.Parameter(torch.randn(WIDTH))
        self.two = nn.Parameter(torch.randn(other))
        self.b = nn.Linear(other, 3)

    def norm(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * torch.rsqrt(mean(x) + self.config.eps) * scale

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.c(self.norm(self.a(x), self.one)), self.two))


class Stream(Shared):
    """One hidden stream, read through both norms."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.c(self.norm(x, self.one))
        return self.b(self.norm(x, self.two))


def test_norms_when_they_share_an_epsilon_and_an_axis_then_they_are_exact():
    model, x = Stream(WIDTH).double().eval(), torch.randn(4, 5).double()
    result = sc.apply_plan(model, sc.Plan({"a": KEPT}), x)
    assert result.structure["a"].exact
    assert result.model.config.eps == pytest.approx(1e-2 * WIDTH / len(KEPT), rel=1e-12)
    assert model.config.eps == 1e-2
    assert gap(result.model(x), masked(model, result)(x)) < 1e-12


@pytest.mark.parametrize("other", [WIDTH, 20])
def test_norms_when_they_share_an_epsilon_and_no_axis_then_neither_is_exact(other):
    model, x = Shared(other).double().eval(), torch.randn(4, 5).double()
    structure = sc.analyze(model, x)
    for name in ("a", "c"):
        assert "config.eps is added, which is read elsewhere" in str(structure[name].inexact)


class Loops(nn.Module):
    """One norm over each head's width, as of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 3, 4
        self.q, self.k = nn.Linear(5, 12), nn.Linear(5, 12)
        self.q_norm, self.k_norm = nn.RMSNorm(4, eps=1e-2), nn.RMSNorm(4, eps=1e-3)
        self.v, self.out = nn.Linear(5, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-1, -2)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_norms_of_queries_and_keys_when_the_head_width_is_cut_then_it_is_exact():
    torch.manual_seed(0)
    model, x = Loops().double().eval(), torch.randn(2, 6, 5).double()
    structure = sc.analyze(model, x)
    (width,) = (g for g in structure.groups if any(m.tensor == "q_norm.weight" for m in g.members))
    assert width.exact
    result = sc.apply_plan(model, sc.Plan({width.name: (0, 2, 3)}), x)
    assert result.model.q_norm.eps == pytest.approx(1e-2 * 4 / 3)
    assert result.model.k_norm.eps == pytest.approx(1e-3 * 4 / 3)
    assert gap(result.model(x), masked(model, result)(x)) < 1e-12


class Fails(Net):
    """Refuses any width but its own."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.n(self.a(x))
        if int(hidden.detach().sum().isnan()) or hidden.contiguous().stride(0) != WIDTH:
            raise RuntimeError("another width")
        return self.b(hidden)


def test_norm_when_the_cut_fails_then_scale_and_epsilon_are_as_before():
    model, x = Fails(nn.RMSNorm(WIDTH, eps=1e-2)).eval(), torch.randn(4, 5)
    structure = sc.analyze(model, x)
    weight = model.n.weight.detach().clone()
    keep = torch.ones(WIDTH, dtype=torch.bool)
    keep[:3] = False
    masks = sc.Plan.from_keeps(structure, {"a": keep}).masks(structure)
    with pytest.raises(sc.errors.ShrinkError):
        sc.shrink(model, masks, x, inplace=True, structure=structure)
    assert torch.equal(model.n.weight, weight)
    assert model.n.eps == 1e-2
    assert model.n.weight.shape == (WIDTH,)


def test_floats_when_they_were_traced_then_the_model_holds_plain_ones():
    model, x = built(EXACT["rsqrt"])
    sc.analyze(model, x)
    assert type(model.n.eps) is float


def test_saved_epsilon_when_the_dense_model_has_another_then_it_is_refused(tmp_path):
    model, x = built(EXACT["rsqrt"])
    sc.apply_plan(model, sc.Plan({"a": KEPT}), x).save(tmp_path)
    model.n.eps = 1e-3
    with pytest.raises(sc.errors.FileError, match=r"n\.eps is 0\.001 in this model, and was 0\.01"):
        sc.load_pruned(tmp_path, model)
