"""Masks that somebody else made: what goes, what stays, and what is said about it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import Result, Structure, analyze, shrink
from secateur.errors import MaskError
from secateur.shrinking import complete, group_masks
from secateur.types import Masks
from tests import zoo


class Plain(nn.Module):
    """Two convolutions, of which the first has a BatchNorm and the second a bias."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Padded(nn.Module):
    """The second convolution pads with zeros, and has a BatchNorm in place of a bias."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class Bare(nn.Module):
    """The reader has no bias, and nothing after it that could take its place."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Forked(nn.Module):
    """What the reader makes goes to its BatchNorm, and past it into a concatenation."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 4, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.relu(self.conv1(x)))
        return self.fc(torch.cat([self.bn2(x), x], 1).mean((2, 3)))


class Residual(nn.Module):
    """The stem and the branch share their channels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.branch = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.branch(F.relu(self.inner(x))))
        return self.fc(x.mean((2, 3)))


class Grouped(nn.Module):
    """A grouped and a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1, bias=False)
        self.grouped = nn.Conv2d(8, 8, 3, groups=4, bias=False)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.depthwise(F.relu(self.grouped(F.relu(self.stem(x)))))))


class Joined(nn.Module):
    """Concatenated branches, gated as in squeeze-and-excite."""

    def __init__(self):
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 3, 1)
        self.gate = nn.Conv2d(7, 7, 1)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


class Halves(nn.Module):
    """An equal chunk: both halves must keep the same number of channels, not the same ones."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(5, 8, bias=False)
        self.one = nn.Linear(4, 3)
        self.two = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.both(x).chunk(2, dim=-1)
        return self.one(F.relu(one)) * self.two(F.relu(two))


class Normed(nn.Module):
    """A LayerNorm over the hidden axis: removal is inexact."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.down = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(self.up(x)))


INPUTS = {Halves: (5, 5), Normed: (5, 4), Bare: (5, 4)}


class Net:
    """A small model in float64, with its structure."""

    def __init__(self, kind: type[nn.Module]):
        generator = torch.Generator().manual_seed(3)
        shape = INPUTS.get(kind, (2, 3, 8, 8))
        self.example = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.fresh = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.model = zoo.randomise(kind().double().eval(), self.example, generator)
        self.structure: Structure = analyze(self.model, self.example)

    def ones(self, *names: str) -> Masks:
        state = dict(self.model.named_parameters())
        return {name: torch.ones(state[name].shape, dtype=torch.bool) for name in names}

    def shrink(self, masks: Mapping[str, Tensor]) -> Result:
        return shrink(self.model, masks, self.example, structure=self.structure)

    def masked(
        self, masks: Mapping[str, Tensor], folded: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The oracle: the output of a copy with the masks multiplied in and constants added."""
        twin = copy.deepcopy(self.model)
        state = twin.state_dict()
        with torch.no_grad():
            for name, mask in masks.items():
                twin.get_parameter(name).mul_(mask)
            for name, amount in (folded or {}).items():
                state[name].add_(amount)
            return twin(self.fresh)

    def output(self, result: Result) -> Tensor:
        with torch.no_grad():
            return result.model(self.fresh)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def plain() -> Net:
    net = Net(Plain)
    with torch.no_grad():
        net.model.bn1.bias[[1, 4]] = 3.0  # what these channels emit when their weights are zero
        net.model.bn1.running_mean[[1, 4]] = 0.0
    return net


@pytest.fixture(scope="module")
def residual() -> Net:
    return Net(Residual)


@pytest.fixture(scope="module")
def grouped() -> Net:
    return Net(Grouped)


@pytest.fixture(scope="module")
def halves() -> Net:
    return Net(Halves)


# one group at a time


def test_shrink_when_every_slice_is_masked_then_the_channels_go_without_a_note(plain):
    masks = plain.ones("conv1.weight", "bn1.weight", "bn1.bias")
    for mask in masks.values():
        mask[[1, 4]] = False
    result = plain.shrink(masks)
    assert result.plan.keep == {"conv1": (0, 2, 3, 5)}
    assert result.notes == []
    assert result.model.conv2.weight.shape == (4, 4, 3, 3)
    assert same(plain.output(result), plain.masked(masks))


def test_shrink_when_only_weights_are_masked_then_the_constant_of_the_norm_is_folded(plain):
    masks = plain.ones("conv1.weight")
    masks["conv1.weight"][[1, 4]] = False
    result = plain.shrink(masks)
    assert result.plan.keep == {"conv1": (0, 2, 3, 5)}
    assert result.notes[0] == (
        "conv1: 2 removed positions emitted a constant; it is folded into conv2"
    )
    assert set(result.folded) == {"conv2.bias"}
    assert same(plain.output(result), plain.masked(masks)), "the masks that were given"
    assert same(plain.output(result), plain.masked(result.masks, result.folded))
    assert not same(plain.output(result), plain.masked(result.masks))
    assert not result.masks["bn1.bias"][[1, 4]].any()
    assert result.warnings == [], "the outputs are those of the masks given"
    assert "folded" in str(result)


def test_shrink_when_constants_are_to_be_masked_then_their_effect_is_reported(plain):
    masks = plain.ones("conv1.weight")
    masks["conv1.weight"][[1, 4]] = False
    result = shrink(plain.model, masks, plain.example, constants="mask")
    assert "it is masked too" in result.notes[0]
    assert not same(plain.output(result), plain.masked(masks)), "that is why it is reported"
    assert same(plain.output(result), plain.masked(result.masks))
    assert result.folded == {}
    (warning,) = result.warnings
    assert re.search(r"from those of the masks given is \d\.\de[-+]\d+ relative", warning)
    assert "conv1 emitted a constant" in warning
    assert "compares with the model in which" in warning
    assert str(result).startswith("warning the difference of its outputs"), "it comes first"


@pytest.mark.parametrize("constants", ["fold", "mask"])
def test_shrink_when_constants_are_removed_unchecked_then_a_warning_says_so(plain, constants):
    masks = plain.ones("conv1.weight")
    masks["conv1.weight"][[1, 4]] = False
    result = shrink(plain.model, masks, plain.example, constants=constants, verify=False)
    assert "was not measured" in result.warnings[0]


def test_shrink_when_the_reader_pads_with_zeros_then_the_mean_is_folded_and_said():
    net = Net(Padded)
    with torch.no_grad():
        net.model.bn1.bias.abs_().add_(0.5)  # so that it survives the ReLU
    masks = net.ones("conv1.weight", "conv1.bias")
    masks["conv1.weight"][[1, 4]] = False
    masks["conv1.bias"][[1, 4]] = False
    result = net.shrink(masks)
    assert result.plan.counts == {"conv1": 4}
    assert set(result.folded) == {"bn2.running_mean"}, "the reader has no bias, but a norm"
    assert any("zero padding stops a constant at the border" in note for note in result.notes)
    assert same(net.output(result), net.masked(result.masks, result.folded))
    assert "those of the masks given is" in result.warnings[0]
    exact = net.masked(masks)
    folded = float((net.output(result) - exact).abs().max())
    dropped = shrink(net.model, masks, net.example, constants="mask")
    assert 0 < folded < float((net.output(dropped) - exact).abs().max())


def test_shrink_when_a_constant_reaches_layers_that_cannot_take_it_then_it_is_masked_and_said():
    net = Net(Bare)
    masks = net.ones("up.weight")
    masks["up.weight"][[1, 4]] = False
    result = net.shrink(masks)
    assert result.plan.counts == {"up": 6}
    assert result.folded == {}
    assert any("which no bias can take over; it is masked too" in note for note in result.notes)
    assert same(net.output(result), net.masked(result.masks))


def test_shrink_when_the_readers_are_masked_then_the_channels_go_exactly(plain):
    masks = plain.ones("conv2.weight")
    masks["conv2.weight"][:, [0, 3]] = False
    result = plain.shrink(masks)
    assert result.plan.keep == {"conv1": (1, 2, 4, 5)}
    assert result.notes == []
    assert same(plain.output(result), plain.masked(masks))


def test_shrink_when_only_some_weights_of_a_channel_are_masked_then_nothing_goes(plain):
    masks = plain.ones("conv1.weight")
    masks["conv1.weight"][:, 0] = False
    masks["conv1.weight"][2, :, 1:] = False
    result = plain.shrink(masks)
    assert result.plan.keep == {}
    assert result.after == result.before
    assert same(plain.output(result), plain.masked(masks)), (
        "the masks are multiplied in all the same"
    )


def test_shrink_when_nothing_is_masked_then_the_model_is_the_same(plain):
    result = plain.shrink({})
    assert result.plan.keep == {}
    assert same(plain.output(result), plain.masked({}))


def test_shrink_when_all_positions_are_masked_then_one_stays_and_a_note_says_so(plain):
    masks = plain.ones("conv1.weight", "bn1.weight", "bn1.bias")
    for mask in masks.values():
        mask[:] = False
    result = plain.shrink(masks)
    assert result.plan.counts == {"conv1": 1}
    assert "conv1: all positions are masked; one stays" in result.notes
    assert same(plain.output(result), plain.masked(masks))


def test_shrink_when_a_masked_weight_is_not_finite_then_it_counts_as_zero(plain):
    model = copy.deepcopy(plain.model)
    with torch.no_grad():
        model.conv2.weight[:, 2] = float("nan")
    masks = plain.ones("conv2.weight")
    masks["conv2.weight"][:, 2] = False
    result = shrink(model, masks, plain.example)
    assert result.plan.counts == {"conv1": 5}
    assert same(plain.output(result), plain.masked(masks))


def test_shrink_when_the_model_has_no_weights_then_it_is_cut_and_not_checked():
    with torch.device("meta"):
        model = Plain().eval()
    masks = {"conv1.weight": torch.ones(6, 3, 3, 3, dtype=torch.bool)}
    masks["conv1.weight"][[1, 4]] = False  # the norm's bias still emits a constant
    result = shrink(model, masks, torch.zeros(2, 3, 8, 8))
    assert result.plan.counts == {"conv1": 4}
    assert result.model.conv2.weight.shape == (4, 4, 3, 3)
    assert result.verification is None


def test_shrink_when_the_reader_is_read_past_its_norm_then_nothing_is_folded_into_that():
    net = Net(Forked)
    with torch.no_grad():
        net.model.conv1.bias.abs_().add_(0.5)
    masks = net.ones("conv1.weight")
    masks["conv1.weight"][[1, 4]] = False
    result = net.shrink(masks)
    assert result.folded == {}
    assert any("which no bias can take over" in note for note in result.notes)
    assert same(net.output(result), net.masked(result.masks))


class Overwritten(nn.Module):
    """What conv2 has read is written over afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 4, 1)
        self.conv3 = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        y = self.conv2(x)
        return y + self.conv3(x.mul_(-3))


class Keyword(Overwritten):
    """conv2 reads its input by name, which hooks on a forward do not see."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(input=x) + self.conv3(x)


@pytest.mark.parametrize("kind", [Overwritten, Keyword])
def test_shrink_when_what_a_reader_read_is_not_known_any_more_then_nothing_is_folded(kind):
    net = Net(kind)
    masks = net.ones("conv1.weight")
    masks["conv1.weight"][[1, 4]] = False
    result = net.shrink(masks)
    assert result.plan.counts == {"conv1": 4}
    assert result.folded == {}
    assert any("which no bias can take over" in note for note in result.notes)
    assert same(net.output(result), net.masked(result.masks))


# several slices that disagree


def test_shrink_when_masks_disagree_across_a_residual_then_only_what_both_mask_goes(residual):
    masks = residual.ones("stem.weight", "branch.weight")
    masks["stem.weight"][[0, 1, 2]] = False
    masks["branch.weight"][[1, 2, 3]] = False
    result = residual.shrink(masks)
    assert result.plan.keep == {"stem": (0, 3, 4, 5)}
    assert result.notes == [
        "stem: 2 of 6 positions are masked in some slices but not in all that matter; they stay"
    ]
    assert same(residual.output(result), residual.masked(masks))


def test_shrink_when_one_reader_of_a_residual_still_reads_then_its_channel_stays(residual):
    masks = residual.ones("inner.weight", "fc.weight")
    masks["inner.weight"][:, [0, 5]] = False
    masks["fc.weight"][:, [0, 2]] = False
    result = residual.shrink(masks)
    assert result.plan.keep == {"stem": (1, 2, 3, 4, 5)}, "both readers ignore channel 0 alone"
    assert "stem: 2 of 6 positions are masked in some slices" in result.notes[0]
    assert same(residual.output(result), residual.masked(masks))


# grids and families


def test_shrink_when_all_channels_of_a_convolution_group_are_masked_then_the_group_goes(grouped):
    masks = grouped.ones("grouped.weight")
    masks["grouped.weight"][[2, 3]] = False  # the second of four groups of two
    result = grouped.shrink(masks)
    assert result.model.grouped.groups == 3
    assert result.model.depthwise.groups == 6
    assert result.model.head.in_channels == 6
    assert same(grouped.output(result), grouped.masked(masks))


def test_shrink_when_one_channel_of_a_convolution_group_is_masked_then_it_stays(grouped):
    masks = grouped.ones("grouped.weight")
    masks["grouped.weight"][2] = False
    result = grouped.shrink(masks)
    assert result.model.grouped.groups == 4
    assert same(grouped.output(result), grouped.masked(masks))


def test_shrink_when_halves_are_masked_unequally_then_they_lose_equally_many(halves):
    sized = {group.name for group in halves.structure.groups if group.sized}
    assert len(sized) == 2
    masks = halves.ones("both.weight")
    masks["both.weight"][[0, 1, 2, 5]] = False  # three of the first half, one of the second
    result = halves.shrink(masks)
    assert set(result.plan.keep) == sized
    assert set(result.plan.counts.values()) == {3}
    assert any("2 masked positions stay" in note for note in result.notes)
    assert same(halves.output(result), halves.masked(masks))


def test_shrink_when_one_half_is_not_masked_then_neither_is_cut(halves):
    masks = halves.ones("both.weight")
    masks["both.weight"][[0, 1]] = False
    result = halves.shrink(masks)
    assert result.plan.keep == {}
    assert any("2 masked positions stay" in note for note in result.notes)
    assert same(halves.output(result), halves.masked(masks))


def test_shrink_when_a_removal_is_inexact_then_the_operation_is_named():
    net = Net(Normed)
    masks = net.ones("up.weight", "up.bias", "norm.weight", "norm.bias")
    for mask in masks.values():
        mask[:3] = False
    result = net.shrink(masks)
    assert result.plan.counts == {"up": 5}
    assert any(note.startswith("inexact: up:") and "norm" in note for note in result.notes)
    assert result.verification is not None
    assert not result.verification.exact
    assert result.verification.difference > 1e-3


def test_group_masks_when_completed_again_then_nothing_changes(residual):
    keeps = {"stem": torch.tensor([True, False, True, True, False, True])}
    done = complete(residual.structure, group_masks(residual.structure, keeps))
    assert {name: keep.tolist() for name, keep in done.keeps.items()} == {
        "stem": keeps["stem"].tolist()
    }
    assert done.notes == []
    assert done.constants == {}


# what is refused


def test_shrink_when_masks_do_not_fit_then_one_error_lists_them_all(plain):
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    masks = {
        "conv1.wieght": torch.ones(6, 3, 3, 3, dtype=torch.bool),
        "bn1.weight": torch.ones(7, dtype=torch.bool),
        "fc.weight": torch.ones(3, 4),
        "bn1.running_mean": torch.ones(6, dtype=torch.bool),
    }
    with pytest.raises(MaskError) as caught:
        plain.shrink(masks)
    text = str(caught.value)
    assert len(text.splitlines()) == 4
    assert "no parameter 'conv1.wieght'. Did you mean 'conv1.weight'?" in text
    assert "'bn1.weight' is (7,), the parameter (6,)" in text
    assert "'fc.weight' is torch.float32, and must be torch.bool" in text
    assert "no parameter 'bn1.running_mean'" in text
    after = plain.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# any masks at all

NETS = {kind.__name__: kind for kind in (Plain, Residual, Grouped, Joined, Halves)}


@st.composite
def some_masks(draw: st.DrawFn, net: Net) -> Masks:
    """Masks of some parameters: whole slices of one dimension, and now and then single weights."""
    masks = {}
    for name, parameter in net.model.named_parameters():
        how = draw(st.sampled_from(["none", "slices", "slices", "elements"]))
        if how == "none":
            continue
        mask = torch.ones(parameter.shape, dtype=torch.bool)
        if how == "slices":
            dim = draw(st.integers(0, parameter.ndim - 1))
            bits = draw(st.integers(0, 2 ** parameter.shape[dim] - 1))
            gone = [i for i in range(parameter.shape[dim]) if bits >> i & 1]
            mask.index_fill_(dim, torch.tensor(gone, dtype=torch.long), False)
        else:
            seed = draw(st.integers(0, 99))
            mask = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
        masks[name] = mask
    return masks


@pytest.fixture(scope="module", params=list(NETS))
def any_net(request: pytest.FixtureRequest) -> Net:
    return Net(NETS[request.param])


@settings(max_examples=40)
@given(data=st.data())
def test_shrink_when_masks_are_random_then_never_wrong_beyond_what_is_reported(any_net, data):
    masks = data.draw(some_masks(any_net))
    result = any_net.shrink(masks)
    found = any_net.output(result)
    assert same(found, any_net.masked(result.masks, result.folded))
    if not any("masked too" in note or "zero padding" in note for note in result.notes):
        assert same(found, any_net.masked(masks))
    for name, kept in result.plan.keep.items():
        assert 0 < len(kept) < any_net.structure[name].size
    assert sum(p.numel() for p in result.model.parameters()) == result.after.params
    assert all(not (result.masks[name] & ~mask).any() for name, mask in masks.items())
