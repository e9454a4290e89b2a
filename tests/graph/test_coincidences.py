"""Inputs whose lengths, or products of them, are as large as something of the model.

How many sequences an example has, and how long they are, says nothing of the model: the groups are
the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.graph.axes import parts_of

HEADS, KEYS, WIDTH, HIDDEN, FFN, VOCABULARY, POSITIONS = 6, 2, 8, 48, 64, 96, 128
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
}
DECODER = TEXT | {"num_key_value_heads": KEYS}
PICTURE = {"image_size": 16, "patch_size": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("AutoModelForCausalLM", DECODER),
    "mixtral": ("AutoModelForCausalLM", DECODER | {"num_local_experts": 4}),
    "bert": ("AutoModelForSequenceClassification", TEXT),
    "vit": ("AutoModelForImageClassification", TEXT | PICTURE),
}
LARGEST = {"bert": POSITIONS}  # sequences that the model takes; the others take any

FEW = [(KEYS, WIDTH // 2), (1, HIDDEN), (WIDTH, WIDTH), (WIDTH, HEADS), (KEYS, HIDDEN)]
MANY = [
    *[(1, n) for n in (2, HEADS, WIDTH, WIDTH // 2, FFN, VOCABULARY, POSITIONS)],
    *[(KEYS, n) for n in (2, 3, WIDTH, 24, FFN, VOCABULARY, POSITIONS)],
    *[(HEADS, n) for n in (1, HEADS, WIDTH, 16, HIDDEN)],
    *[(n, 1) for n in (WIDTH, HIDDEN)],
    *[(HIDDEN, 2), (FFN, 2), (VOCABULARY, 2), (4, FFN), (4, 512), (1, 700)],
]
SHAPES = [*FEW, *(pytest.param(shape, marks=pytest.mark.slow) for shape in MANY)]


@cache
def model(name: str) -> nn.Module:
    pytest.importorskip("benchmarks.models.transformers")
    import transformers

    head, settings = MODELS[name]
    config = transformers.AutoConfig.for_model(name, **settings)
    with torch.random.fork_rng(devices=[]):
        return getattr(transformers, head).from_config(config).eval()


def example(name: str, batch: int, length: int) -> Tensor:
    if name == "vit":  # its tokens are the patches
        return torch.randn(batch, 3, 16, 16)
    return torch.arange(batch * length).reshape(batch, length) % VOCABULARY


def groups(name: str, batch: int, length: int) -> list[tuple[Any, ...]]:
    structure = sc.analyze(model(name), example(name, batch, length))
    return [
        (g.name, g.size, g.members, g.exact, g.sized, g.grid, g.params, g.least, g.step)
        for g in structure.groups
    ]


usual: Callable[[str], list[tuple[Any, ...]]] = cache(lambda name: groups(name, 2, 5))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_groups_when_the_input_is_as_large_as_the_model_then_they_are_the_usual_ones(name, shape):
    if shape[1] > LARGEST.get(name, shape[1]):
        pytest.skip(f"{name} has {LARGEST[name]} positions")
    assert len(usual(name)) > 5
    assert groups(name, *shape) == usual(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [(1, 512), (2, 1200)], ids=str)
def test_groups_when_sequences_are_long_then_they_are_the_usual_ones(shape):
    assert groups("llama", *shape) == usual("llama")


class Differences(nn.Module):
    """Each position of a dimension less the one ``by`` before it, of tokens or of channels."""

    def __init__(self, width: int, dim: int, by: int):
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width - (by if dim == 2 else 0), 3)
        self.dim, self.by = dim, by

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        rest = x.shape[self.dim] - self.by
        return self.down(x.narrow(self.dim, self.by, rest) - x.narrow(self.dim, 0, rest))


@pytest.mark.parametrize(("length", "by"), [(9, 1), (9, 4), (2000, 3), (50_000, 1)])
def test_groups_when_tokens_are_subtracted_from_the_next_then_channels_are_free(length, by):
    structure = sc.analyze(Differences(8, 1, by), torch.randn(2, length, 4))
    assert [(g.name, g.size, g.exact) for g in structure.groups] == [("up", 8, True)]


@pytest.mark.parametrize(("width", "by"), [(12, 3), (12, 5), (12, 8), (1500, 500), (1500, 3)])
def test_groups_when_channels_are_subtracted_from_the_next_then_they_go_together(width, by):
    structure = sc.analyze(Differences(width, 2, by), torch.randn(2, 5, 4))
    assert sum(group.size for group in structure.groups) == by
    assert len(parts_of(structure.tensor("up.weight").dims[0].axis)) <= width
