"""Positions that are masked wherever they are made, and that a norm makes anew: cut on request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import shrink
from secateur.structure import analyze

HIDDEN, GONE = 8, (1, 3, 4)


class ByHand(nn.Module):
    """A layer norm in plain operations, or, without the mean, a root mean square."""

    def __init__(self, width: int, centred: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.centred = centred

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return self.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "LayerNorm": nn.LayerNorm,
    "LayerNorm without affine": lambda n: nn.LayerNorm(n, elementwise_affine=False),
    "a layer norm by hand": lambda n: ByHand(n, centred=True),
    "a root mean square by hand": lambda n: ByHand(n, centred=False),
    "GroupNorm": lambda n: nn.GroupNorm(1, n),
    "a softmax": lambda n: nn.Softmax(-1),
}


class Stream(nn.Module):
    """Two blocks that add to a hidden stream, normalised before or after each."""

    def __init__(self, norm: Callable[[int], nn.Module], before: bool, bias: bool):
        super().__init__()
        self.before = before
        self.emb = nn.Linear(5, HIDDEN, bias=bias)
        self.up = nn.ModuleList(nn.Linear(HIDDEN, 12) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(12, HIDDEN, bias=bias) for _ in range(2))
        self.norms = nn.ModuleList(norm(HIDDEN) for _ in range(3))
        self.head = nn.Linear(HIDDEN, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.emb(x)
        if not self.before:
            x = self.norms[0](x)
        for up, down, norm in zip(self.up, self.down, self.norms[1:], strict=True):
            x = x + down(up(norm(x)).relu()) if self.before else norm(x + down(up(x).relu()))
        return self.head(self.norms[0](x) if self.before else x)


SOURCES = ("emb.weight", "down.0.weight", "down.1.weight")


def built(name: str, before: bool, bias: bool) -> tuple[Stream, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Stream(NORMS[name], before, bias).double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
        return model, torch.randn(4, 5).double()


def rows(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """Return masks that lack some rows of each parameter."""
    state = dict(model.named_parameters())
    masks = {name: torch.ones(state[name].shape, dtype=torch.bool) for name in names}
    for mask in masks.values():
        mask[list(GONE)] = False
    return masks


def gap(model: nn.Module, masks: Mapping[str, Tensor], small: nn.Module, x: Tensor) -> float:
    """Return how far the smaller model's outputs are from those under the masks alone."""
    model = copy.deepcopy(model)
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            state[name].mul_(mask)
        expected, found = model(x), small(x)
    return float((expected - found).abs().max() / expected.abs().max())


forms = pytest.mark.parametrize("bias", [True, False], ids=["biased", "bare"])
places = pytest.mark.parametrize("before", [True, False], ids=["pre", "post"])
every_norm = pytest.mark.parametrize("name", NORMS)


@every_norm
@places
@forms
def test_shrink_when_hidden_positions_are_masked_at_their_sources_then_they_stay_and_it_is_told(
    name, before, bias
):
    model, x = built(name, before, bias)
    masks = rows(model, *SOURCES)
    result = shrink(model, masks, x)
    assert not result.plan.keep
    assert any("stay unless inexact=True" in note and "inexact: " in note for note in result.notes)
    assert result.verification.exact
    assert gap(model, masks, result.model, x) < 1e-10


@every_norm
@places
@forms
def test_shrink_when_asked_then_they_go_and_the_difference_is_measured(name, before, bias):
    model, x = built(name, before, bias)
    masks = rows(model, *SOURCES)
    result = shrink(model, masks, x, inexact=True)
    assert list(result.plan.counts.values()) == [HIDDEN - len(GONE)]
    assert result.model.emb.out_features == HIDDEN - len(GONE)
    assert not result.verification.exact
    assert result.verification.difference > 1e-6
    seen = gap(model, masks, result.model, x)
    assert seen > 1e-6
    (note,) = [n for n in result.notes if n.endswith("from those of the masks given")]
    assert float(note.split()[3]) >= 0.9 * seen  # the largest of several inputs
    assert any("on request" in warning for warning in result.warnings)
    assert any(n.startswith("inexact: ") for n in result.notes)


@every_norm
@places
@pytest.mark.parametrize("unmasked", SOURCES)
def test_shrink_when_one_source_is_not_masked_then_they_stay_though_asked(name, before, unmasked):
    model, x = built(name, before, True)
    masks = rows(model, *(source for source in SOURCES if source != unmasked))
    result = shrink(model, masks, x, inexact=True)
    forgotten = not before and unmasked != "down.1.weight"  # a later norm makes them anew
    assert forgotten or not result.plan.keep
    assert gap(model, masks, result.model, x) < 1e-10 or result.plan.keep


def test_shrink_when_every_slice_is_masked_then_that_is_the_request():
    model, x = built("LayerNorm", True, True)
    norms = [f"norms.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]
    biases = [name.replace("weight", "bias") for name in SOURCES]
    masks = rows(model, *SOURCES, *biases, *norms)
    result = shrink(model, masks, x)
    assert result.plan.counts == {"emb": HIDDEN - len(GONE)}
    assert not result.verification.exact
    assert any(note.startswith("inexact: emb:") for note in result.notes)


@places
def test_shrink_when_a_root_mean_square_takes_the_factor_up_then_zero_positions_go_unasked(before):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Stream(lambda n: nn.RMSNorm(n, eps=1e-2), before, bias=False).double().eval()
        x = torch.randn(4, 5).double()
    masks = rows(model, *SOURCES)
    result = shrink(model, masks, x)
    assert result.plan.counts == {"emb": HIDDEN - len(GONE)}
    assert result.verification.exact
    assert gap(model, masks, result.model, x) < 1e-10


@places
def test_shrink_when_a_bias_is_left_before_a_root_mean_square_then_the_positions_stay(before):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Stream(lambda n: nn.RMSNorm(n, eps=1e-2), before, bias=True).double().eval()
        x = torch.randn(4, 5).double()
    result = shrink(model, rows(model, *SOURCES), x)
    assert not result.plan.keep


class Gated(nn.Module):
    """Exact to prune, and a gate for all channels: constants become data, and no norm is there."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.gate, self.head = nn.Linear(5, 8), nn.Linear(5, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.emb(x)) * self.gate(x).sigmoid())


@pytest.mark.parametrize("inexact", [True, False])
def test_shrink_when_the_group_is_exact_then_a_gated_constant_stays(inexact):
    torch.manual_seed(0)
    model, x = Gated().double().eval(), torch.randn(4, 5).double()
    assert analyze(model, x)["emb"].exact
    masks = rows(model, "emb.weight")
    result = shrink(model, masks, x, inexact=inexact)
    assert not result.plan.keep
    assert gap(model, masks, result.model, x) < 1e-10
