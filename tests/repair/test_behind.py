"""Layers behind a cut that lose nothing themselves are fitted to what they gave before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.repair import run


def few_directions(many: int) -> list[Tensor]:
    """Return batches of inputs that lie near a plane, so that some say much of the others."""
    generator = torch.Generator().manual_seed(2)
    basis = torch.randn(6, 16, generator=generator)
    noise = (0.1 * torch.randn(64, 16, generator=generator) for _ in range(many))
    return [torch.randn(64, 6, generator=generator) @ basis + each for each in noise]


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 48),
            nn.Linear(48, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Reader(nn.Module):
    """Blocks between a table of words and what scores them."""

    def __init__(self, tied: bool = False, scores: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(24, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, scores, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def pruned(model: nn.Module, data: list[Any], **options: Any) -> tuple[Any, dict[str, bool]]:
    """Return a result, and of each weight that kept its shape whether it is as it was."""
    result = sc.prune(model, data[0], 0.5, "activation", data=data, **options)
    dense = dict(model.named_parameters())
    small = result.model.named_parameters()
    return result, {n: torch.equal(p, dense[n]) for n, p in small if p.shape == dense[n].shape}


@pytest.fixture
def ids() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(24, (16, 12), generator=generator) for _ in range(4)]


def plain() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("how", ["least_squares", "sparse", "bias"])
def test_prune_when_a_layer_is_cut_then_those_behind_it_are_refitted_and_those_before_are_not(
    how: str,
) -> None:
    data = few_directions(4)
    result, same = pruned(plain(), data, names=["0"], repair=how)
    refitted = {refit.tensor for refit in result.repair.refits if refit.done}
    assert same["4.weight"] is (how == "bias")
    assert refitted == ({"2.weight"} if how == "bias" else {"2.weight", "4.weight"})
    _, same = pruned(plain(), data, names=["2"], repair=how)
    assert same["0.weight"]
    assert same["0.bias"]


@pytest.mark.parametrize("seed", range(4))
def test_prune_when_layers_behind_are_refitted_then_outputs_are_nearer(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(Block(), Block(), Block(), nn.Linear(16, 5)).eval()
    data = [torch.randn(128, 16) for _ in range(8)]
    everything = sc.prune(model, data[0], 0.5, "activation", data=data).repair
    monkeypatch.setattr(run, "behind", lambda *_, **__: frozenset())
    readers_alone = sc.prune(model, data[0], 0.5, "activation", data=data).repair
    assert everything.after.error < readers_alone.after.error < everything.before.error
    assert len(everything.refits) > len(readers_alone.refits)


@pytest.mark.parametrize("tied", [False, True])
def test_prune_when_a_vocabulary_is_scored_then_it_stays_as_it_was(
    tied: bool, ids: list[Tensor]
) -> None:
    torch.manual_seed(0)
    _, same = pruned(Reader(tied).eval(), ids)
    assert same["words.weight"]
    assert tied or same["head.weight"]


def test_prune_when_ids_are_read_then_nothing_outside_of_blocks_is_refitted(
    ids: list[Tensor],
) -> None:
    torch.manual_seed(0)
    model = Reader().eval()
    model.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 24))
    _, same = pruned(model, ids, exclude=["head*"])
    assert all(kept for name, kept in same.items() if name.startswith("head."))
    assert not all(same.values())


def test_prune_when_nothing_of_a_block_goes_then_it_stays_as_it_was(ids: list[Tensor]) -> None:
    torch.manual_seed(0)
    _, same = pruned(Reader().eval(), ids, exclude=["blocks.2.*"])
    assert all(kept for name, kept in same.items() if name.startswith("blocks.2."))


def test_prune_when_a_weight_is_read_twice_then_it_stays_as_it_was() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.shared = (
                nn.Linear(16, 32),
                nn.Linear(32, 16),
                nn.Linear(16, 16),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(self.shared(self.second(self.first(x).relu())).relu())

    torch.manual_seed(0)
    _, same = pruned(Twice().eval(), few_directions(4), names=["first"])
    assert same["shared.weight"]


LOOKS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "its norm": lambda y, w: y / w.norm(dim=1),
    "its mean": lambda y, w: y + w.mean(),
    "a penalty": lambda y, w: (y, (w * w).sum()),
    "detached": lambda y, w: y + w.detach().sum(1),
    "a row": lambda y, w: y + nn.functional.embedding(torch.zeros(1, dtype=torch.long), w).mean(),
}


class Looked(nn.Module):
    """A layer whose weight is looked at, beside what it computes."""

    def __init__(self, look: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 5)
        self.look = look

    def forward(self, x: Tensor) -> Any:
        h = self.second(self.first(x).relu()).relu()
        return self.look(self.last(h), self.last.weight)


@pytest.mark.parametrize("look", list(LOOKS))
def test_prune_when_a_weight_is_looked_at_besides_then_it_stays_as_it_was(look: str) -> None:
    torch.manual_seed(0)
    _, same = pruned(Looked(LOOKS[look]).eval(), few_directions(4), names=["first"])
    assert same["last.weight"]
    torch.manual_seed(0)
    _, same = pruned(Looked(lambda y, _: y).eval(), few_directions(4), names=["first"])
    assert not same["last.weight"]


def test_prune_when_there_is_one_batch_then_nothing_besides_is_refitted() -> None:
    result, same = pruned(plain(), few_directions(1), names=["0"])
    assert same["4.weight"]
    assert [refit.tensor for refit in result.repair.refits] == ["2.weight"]
