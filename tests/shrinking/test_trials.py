"""What two models are compared on, and what a model that refuses it is spared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Verification, analyze, prune
from secateur.shrinking.trials import Trial, fresh, trials, varying


def made(trial: Trial, way: int = 0) -> Any:
    return trial[way].make()


class Any_(nn.Module):
    """Takes anything, and returns a number."""

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return torch.stack([x.double().sum() for x in (*args, *kwargs.values())]).sum()


def of(example: Any) -> list[Trial]:
    return trials(example, analyze(Any_(), example))


# values


def test_fresh_when_the_example_is_floats_then_its_own_in_another_order_and_others_of_its_range():
    example = 100 + 5 * torch.randn(400)
    permuted, normal = fresh(example)
    (one,), (other,) = made(permuted), made(normal)
    assert torch.equal(one.sort().values, example.sort().values)
    assert not torch.equal(one, example)
    assert abs(float(other.mean()) - 100) < 2
    assert 4 < float(other.std()) < 6
    (last,) = made(normal, 1)
    assert example.min() <= last.min()
    assert last.max() <= example.max()


def test_fresh_when_the_example_is_numbers_then_the_same_ones_in_another_order():
    example = torch.arange(20).reshape(4, 5)
    (permuted,) = fresh(example)
    (found,) = made(permuted)
    assert not torch.equal(found, example)
    assert torch.equal(found.flatten().sort().values, example.flatten())


@pytest.mark.parametrize(
    "example", [torch.zeros(2, 3), torch.ones(1), torch.zeros(3, dtype=torch.long)]
)
def test_fresh_when_all_values_are_one_then_others_are_made(example):
    (trial,) = fresh(example)
    (found,) = made(trial)
    assert found.shape == example.shape
    assert found.dtype == example.dtype
    assert not torch.equal(found, example)
    (last,) = made(trial, -1)
    assert last.min() >= 0
    assert last.max() <= 1


@pytest.mark.parametrize("example", [torch.zeros(0), torch.ones(3, dtype=torch.bool), 3])
def test_fresh_when_there_is_nothing_to_change_then_there_are_none(example):
    assert fresh(example) == []


def test_trials_when_asked_twice_then_they_are_the_same():
    example = {"x": torch.randn(3, 4), "y": torch.arange(5)}
    for one, other in zip(of(example), of(example), strict=True):
        assert all(torch.equal(made(one)[name], made(other)[name]) for name in example)


# sizes


class Adds(nn.Module):
    """Ids, their mask and places of one length, an image apart, a weight that fixes a width."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(10, 8), nn.Embedding(64, 8)
        self.wide = nn.Linear(5, 8)

    def forward(self, ids: Tensor, mask: Tensor, places: Tensor, x: Tensor) -> Tensor:
        h = self.embedding(ids) * mask[..., None] + self.places(places)
        return h.mean(1) + self.wide(x)


def test_varying_when_dimensions_meet_then_they_vary_together_and_what_weights_fix_does_not():
    ids = torch.randint(0, 10, (2, 6))
    example = (ids, torch.ones(2, 6), torch.arange(6)[None], torch.randn(2, 5))
    found = {v.places: v.size for v in varying(analyze(Adds(), example))}
    assert found[(0, 0), (1, 0), (3, 0)] == 2
    assert found[(0, 1), (1, 1), (2, 1)] == 6
    assert not any((3, 1) in places for places in found)


@pytest.mark.parametrize(
    ("x", "grown"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([0, 4, 9], [0, 4, 9, 10, 11, 12]),
        ([0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1]),
        ([7, 3, 5], [7, 3, 5, 7, 3, 5]),
    ],
    ids=["places", "offsets", "segments", "ids"],
)
def test_resized_when_whole_numbers_ascend_then_they_go_on(x, grown):
    example = torch.tensor([x])
    names = {way.name: way for trial in of(example) for way in trial}
    assert names[f"shape[1] = {2 * len(x)}"].make()[0].tolist() == [grown]


def test_resized_when_an_image_is_a_square_then_first_it_is_none():
    found = [[way.name for way in trial] for trial in of(torch.randn(2, 3, 8, 8))]
    larger = next(names for names in found if "shape[1] = 6, shape[2] = 4, shape[3] = 16" in names)
    assert larger.index("shape[1] = 6, shape[2] = 16, shape[3] = 16") > 0


# what a model refuses


class Refuses(nn.Module):
    """An ordinary network behind a door that is not open for everything."""

    def __init__(self, wants: Any) -> None:
        super().__init__()
        self.wants = wants
        self.stem, self.middle, self.head = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wants(x)
        return self.head(self.middle(self.stem(x).relu()).relu())


def between(x: Tensor) -> Tensor:
    assert bool(((x >= 0) & (x <= 1)).all()), "probabilities"
    return x


def target(x: Tensor) -> Tensor:
    return x + F.binary_cross_entropy(x, torch.full_like(x, 0.5))


def ascending(x: Tensor) -> Tensor:
    if bool((x.diff(dim=-1) < 0).any()):
        raise ValueError("sort it first")
    return x


def normalised(x: Tensor) -> Tensor:
    assert torch.allclose(x.sum(-1), torch.ones(len(x), dtype=x.dtype)), "no distribution"
    return x


def of_two_rows(x: Tensor) -> Tensor:
    return x.view(2, 6)


UNIT = torch.rand(2, 6, generator=torch.Generator().manual_seed(7)).round()
WANTS = {
    "between 0 and 1": (between, UNIT),
    "chances": (lambda x: torch.bernoulli(x) + x, UNIT),
    "targets": (target, UNIT),
    "ascending": (ascending, torch.arange(12.0).view(2, 6)),
    "distributions": (normalised, torch.arange(12.0).view(2, 6).softmax(-1)),
    "one batch": (of_two_rows, UNIT),
    "nothing negative": (lambda x: between(x / 1000), UNIT * 1000),
}


@pytest.mark.parametrize("kind", WANTS)
def test_prune_when_the_model_refuses_made_up_inputs_then_others_are_found_or_it_is_said(kind):
    wants, example = WANTS[kind]
    result = prune(Refuses(wants), example, sparsity=0.5)
    found = result.verification
    assert isinstance(found, Verification)
    assert found.passed
    assert found.tried[0] == "the example"
    assert found.inputs == len(found.tried) >= 1
    if "uniform values" in found.tried:  # in place of normal ones
        assert not any("values" in each for each in found.refused)
    else:
        assert f"not compared on: {found.refused[0]}" in " ".join(str(result).split())
    assert result.model.stem.out_features == 8


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.up, self.head = nn.EmbeddingBag(20, 6), nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.up(self.bag(ids, offsets)).relu())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids))


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Bag(), (torch.randint(0, 20, (12,)), torch.tensor([0, 3, 5, 9]))),
        (Tokens(), torch.randint(0, 20, (2, 5))),
        (Tokens(), torch.zeros(1, 5, dtype=torch.long)),
        (Tokens(), torch.full((1, 1), 19)),
    ],
    ids=["offsets", "ids", "all zero", "the last"],
)
def test_prune_when_inputs_are_whole_numbers_then_made_up_ones_do_not_end_it(model, example):
    assert prune(model, example, sparsity=0.5, inexact=True).verification is not None


class TableOf(nn.Module):
    """Reads as many rows of a table as the input is long, and loses those that it did not see."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        if x.shape[1] > 9:  # no example goes here
            h = h / self.up.weight.shape[0]
        return self.down(h)


def test_prune_when_only_another_length_shows_a_difference_then_it_is_seen():
    from secateur.errors import VerificationError

    with pytest.raises(VerificationError, match=r"on shape\[1\] = 16"):
        prune(TableOf(), torch.randn(2, 8, 6), sparsity=0.5)


class Masked(nn.Module):
    """Attention whose mask meets the ids' length where no axis tells: picked by positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up = nn.Embedding(50, 64), nn.Linear(64, 512)
        self.down, self.head = nn.Linear(512, 64), nn.Linear(64, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.embed(ids)
        rows = torch.arange(len(attention_mask))[:, None, None]
        kept = attention_mask.bool()[rows, torch.arange(attention_mask.shape[1])]
        h = h + nn.functional.scaled_dot_product_attention(h, h, h, attn_mask=kept)
        return self.head(h + self.down(self.up(h).relu()))


def test_prune_when_ids_and_their_mask_are_of_one_length_then_another_length_is_tried():
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (16, 47))
    example = {"ids": ids, "attention_mask": (torch.arange(47) < 40).long().repeat(16, 1)}
    result = prune(Masked().eval(), example, names=["up"], sparsity=0.5)
    found = result.verification
    assert found is not None
    assert found.passed
    assert sum("shape[1] = " in each for each in found.tried) >= 2, found
    assert not found.refused
