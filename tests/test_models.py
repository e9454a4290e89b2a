"""Models as people write them: parametrized weights, shared layers, several inputs, any outputs."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import secateur as sc
from secateur.types import call_arguments

SEED = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=SEED)


# parametrized weights


def feed_forward(wrap: Callable[..., nn.Module], **options: Any) -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), wrap(nn.Linear(16, 12), **options), nn.ReLU(), nn.Linear(12, 3)
    )


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return feed_forward(nn.utils.weight_norm)


def convolutions(wrap: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(
        wrap(nn.Conv2d(3, 8, 3)), nn.ReLU(), wrap(nn.Conv2d(8, 8, 3, groups=2)), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


PARAMETRIZED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "weight norm": (lambda: feed_forward(parametrizations.weight_norm), random(4, 6)),
    "weight norm of columns": (
        lambda: feed_forward(parametrizations.weight_norm, dim=1), random(4, 6),
    ),
    "weight norm of all": (
        lambda: feed_forward(parametrizations.weight_norm, dim=None), random(4, 6),
    ),
    "weight norm, old": (old_weight_norm, random(4, 6)),
    "weight norm, convolutions": (
        lambda: convolutions(parametrizations.weight_norm), random(2, 3, 8, 8),
    ),
    "spectral norm": (lambda: feed_forward(parametrizations.spectral_norm), random(4, 6)),
    "spectral norm, old": (lambda: feed_forward(nn.utils.spectral_norm), random(4, 6)),
    "spectral norm, convolutions": (
        lambda: convolutions(parametrizations.spectral_norm), random(2, 3, 8, 8),
    ),
    "orthogonal": (lambda: feed_forward(parametrizations.orthogonal), random(4, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_prune_when_weights_are_parametrized_then_masked_equals_cut(name, tmp_path):
    build, example = PARAMETRIZED[name]
    torch.manual_seed(0)
    model = build().eval()
    result = sc.prune(model, example, sparsity=0.5)
    assert result.verification.exact
    assert result.verification.passed
    assert result.after.params < result.before.params
    torch.manual_seed(0)
    loaded = sc.load_pruned(result.save(tmp_path), build()).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(example), result.model(example))
    result.model.train()(example).sum().backward()


# layers of other dimensions


def up_and_down(dims: int) -> tuple[nn.Module, Tensor]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1]
    model = nn.Sequential(
        conv(2, 8, 3, padding=1), norm(8), nn.ReLU(), pool(2), conv(8, 8, 3, padding=1, groups=4),
        nn.ReLU(), back(8, 6, 2, stride=2), norm(6), nn.ReLU(), back(6, 6, 1, groups=3), nn.ReLU(),
        back(6, 6, 1, groups=6), conv(6, 2, 1),
    )  # fmt: skip
    return model, random(2, 2, *[4] * dims)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_prune_when_convolutions_have_any_number_of_dimensions_then_masked_equals_cut(dims):
    torch.manual_seed(0)
    model, example = up_and_down(dims)
    result = sc.prune(model.eval(), example, sparsity=0.5)
    assert result.verification.passed
    assert result.verification.difference < 1e-5
    assert result.model[0].out_channels == 4
    assert result.model[6].out_channels == result.model[6].weight.shape[1] < 6
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


# calls


class Shared(nn.Module):
    """One layer that runs twice, and one table that has two names."""

    def __init__(self):
        super().__init__()
        self.first, self.body, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.again = self.body

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.out(torch.relu(self.again(torch.relu(self.body(x)))))


def test_prune_when_a_layer_runs_twice_then_both_calls_shrink():
    torch.manual_seed(0)
    result = sc.prune(Shared(), random(4, 6), sparsity=0.5)
    assert result.verification.passed
    assert result.model.again is result.model.body
    assert result.model.body.weight.shape == (4, 4)


class Siamese(nn.Module):
    """One encoder for two inputs; a third may be left out, a fourth is a number."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8))
        self.bias, self.out = nn.Linear(5, 8), nn.Linear(16, 3)

    def forward(
        self, left: Tensor, right: Tensor, extra: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        a, b = self.encode(left), self.encode(right)
        if extra is not None:
            b = b + self.bias(extra)
        return self.out(torch.cat([a * scale, torch.tanh(b)], -1))


TWO, THREE = (random(4, 6), random(4, 6)), (random(4, 6), random(4, 6), random(4, 5))


@pytest.mark.parametrize(
    "example",
    [
        TWO,
        THREE,
        (*TWO, None, 2.0),
        {"left": TWO[0], "right": TWO[1]},
        {"right": THREE[0], "left": THREE[1], "extra": THREE[2], "scale": 0.5},
    ],
    ids=["two", "three", "a number", "keywords", "all keywords"],
)
def test_prune_when_there_are_several_inputs_then_masked_equals_cut(example):
    torch.manual_seed(0)
    result = sc.prune(Siamese(), example, sparsity=0.5)
    assert result.verification.passed
    assert result.model.encode[0].out_features == 8
    arguments, options = call_arguments(example)
    result.model(*arguments, **options)


def test_prune_when_an_optional_input_is_left_out_then_its_layer_stays():
    result = sc.prune(Siamese(), TWO, sparsity=0.5)
    assert result.model.bias.in_features == 5


@dataclass
class Answer:
    """What a model may return."""

    logits: Tensor
    hidden: list[Tensor]
    note: str = "fine"


Pair = namedtuple("Pair", ["logits", "hidden"])

FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, h: (y, h),
    "nested": lambda y, h: {"a": [y, (h, None)], "b": 3},
    "dict": lambda y, h: {"logits": y, "hidden": h},
    "named tuple": lambda y, h: Pair(y, h),
    "dataclass": lambda y, h: Answer(y, [h]),
}


class Returns(nn.Module):
    def __init__(self, form: str):
        super().__init__()
        self.form = form
        self.up, self.mid, self.out = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        hidden = self.mid(torch.relu(self.up(x)))
        return FORMS[self.form](self.out(torch.relu(hidden)), hidden)


@pytest.mark.parametrize("form", FORMS)
def test_prune_when_the_output_has_any_form_then_all_its_tensors_keep_their_shape(form):
    torch.manual_seed(0)
    model, x = Returns(form), random(4, 6)
    result = sc.prune(model, x, sparsity=0.5)
    assert result.verification.passed
    assert result.model.up.out_features == 8
    assert result.model.mid.out_features == 8, "it is returned"
    assert "output" in sc.analyze(model, x).explain("mid.weight", 0)
    assert type(result.model(x)) is type(model(x))


class Tables(nn.Module):
    """An embedding that is the output layer too, beside one that is not, and a bag."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(12, 8), nn.Embedding(5, 8)
        self.bag = nn.EmbeddingBag(7, 8, mode="sum")
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor, bag: Tensor) -> Tensor:
        x = self.words(words) + self.places.weight[: words.shape[1]] + self.bag(bag)[:, None]
        return self.head(x + self.down(torch.relu(self.up(x))))


def test_prune_when_tables_are_tied_then_they_stay_tied_and_all_follow():
    torch.manual_seed(0)
    example = (torch.randint(12, (2, 5), generator=SEED), torch.randint(7, (2, 3), generator=SEED))
    result = sc.prune(Tables(), example, sparsity=0.5)
    model = result.model
    assert result.verification.passed
    assert model.head.weight is model.words.weight
    assert model.up.out_features == 8
    if model.words.embedding_dim != 8:  # the bag has a rule
        assert model.places.embedding_dim == model.bag.embedding_dim == model.head.in_features == 4


def test_prune_when_channels_become_space_then_masked_equals_cut():
    class Upscale(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
            self.last = nn.Conv2d(6, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.pixel_shuffle(self.wide(torch.relu(self.conv(x))), 2)
            return self.last(torch.relu(x))

    torch.manual_seed(0)
    result = sc.prune(Upscale(), random(2, 3, 6, 6), sparsity=0.5)
    assert result.verification.passed
    assert (result.model.wide.out_channels, result.model.last.in_channels) == (12, 3)
