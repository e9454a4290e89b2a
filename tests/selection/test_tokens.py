"""Tokens by chance, and the default that looks at them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.selection.tokens import MOST_BATCHES, TOKENS, random_tokens


class Texts(nn.Module):
    """Tokens, places and kinds are looked up; what the mask hides does not count."""

    def __init__(self, vocabulary: int = 50):
        super().__init__()
        self.words = nn.Embedding(vocabulary, 8)
        self.places, self.kinds = nn.Embedding(32, 8), nn.Embedding(2, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        kinds: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        x = self.words(input_ids.view(-1, input_ids.shape[-1])) + self.places.weight[:1]
        if kinds is not None:
            x = x + self.kinds(kinds)
        if scale is not None:
            x = x * scale
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        return self.down(self.up(x).relu())


IDS = torch.zeros(2, 16, dtype=torch.long)


def drawn(model: nn.Module, example: Any) -> list[Any]:
    return random_tokens(example, sc.analyze(model, example))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1, 4), (2, 16), (4, 512)])
def test_tokens_when_ids_are_looked_up_then_they_have_the_examples_form(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    batches = drawn(Texts(), torch.zeros(shape, dtype=dtype))
    ids = [ids for (ids,) in batches]
    assert {(tuple(x.shape), x.dtype) for x in ids} == {(shape, dtype)}
    assert int(torch.stack(ids).amax()) == 49
    assert len(ids) == min(MOST_BATCHES, -(-TOKENS // (shape[0] * shape[1])))


def test_tokens_when_there_are_masks_and_other_tables_then_these_stay() -> None:
    ones, kinds = torch.ones_like(IDS), torch.zeros_like(IDS)
    example = {"kinds": kinds, "attention_mask": ones, "input_ids": IDS}
    for batch in drawn(Texts(), example):
        assert torch.equal(batch["attention_mask"], ones)
        assert torch.equal(batch["kinds"], kinds)
        assert not torch.equal(batch["input_ids"], IDS)


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.zeros(1, 4)),
        (Texts(), {"input_ids": IDS, "scale": torch.ones(2, 16, 8)}),
        (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (torch.zeros(1, 4),)),
    ],
    ids=["floats", "floats beside tokens", "a tuple"],
)
def test_tokens_when_an_input_is_a_float_then_nothing_is_made_up(
    model: nn.Module, example: Any
) -> None:
    assert drawn(model, example) == []


def silent(model: Texts, channels: Tensor) -> Texts:
    """Return the model with channels whose weights are the largest, and that are never active."""
    with torch.no_grad():
        model.up.bias.fill_(5.0)
        model.up.weight[channels] *= 50
        model.up.bias[channels] = -1e4
    return model


def test_default_when_the_model_takes_tokens_then_silent_channels_go_and_it_is_said() -> None:
    torch.manual_seed(0)
    channels = torch.arange(16)[::2]
    result = sc.prune(silent(Texts(), channels), IDS, 0.5)
    assert result.masks["up.weight"].any(1).tolist() == [False, True] * 8
    assert any("random tokens" in note for note in result.notes)


@pytest.mark.parametrize("how", [{"criterion": "l2"}, {"granularity": "out_channel"}])
def test_default_when_a_criterion_or_other_units_are_named_then_no_tokens_are_drawn(
    how: dict[str, Any],
) -> None:
    result = sc.prune(Texts(), IDS, 0.5, strict=False, **how)
    assert not any("tokens" in note for note in result.notes)


def test_default_when_the_model_refuses_random_tokens_then_weights_are_scored_and_it_is_said() -> (
    None
):
    class Strict(Texts):
        def forward(self, input_ids: Tensor, *rest: Any) -> Tensor:
            if int(input_ids[0, 0]) != 0:
                raise ValueError("a text starts with 0")
            return super().forward(input_ids, *rest)

    torch.manual_seed(0)
    model = Strict()
    result, plain = sc.prune(model, IDS, 0.5), sc.prune(model, IDS, 0.5, "l2")
    assert torch.equal(result.masks["up.weight"], plain.masks["up.weight"])
    assert any("weights alone" in note and "starts with 0" in note for note in result.notes)


def test_default_when_there_is_data_then_activations_are_scored() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        net[0].weight[::2] *= 50
        net[0].bias[::2] = -1e4
    result = sc.prune(net, torch.zeros(1, 4), 0.5, data=[torch.randn(64, 4)])
    assert result.masks["0.weight"].any(1).tolist() == [False, True] * 8


def test_default_when_inputs_are_floats_and_there_is_no_data_then_it_is_l2() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    results = [sc.prune(net, torch.zeros(1, 4), 0.5, how) for how in (None, "l2")]
    assert torch.equal(*(result.masks["0.weight"] for result in results))
