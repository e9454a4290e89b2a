"""Layers learn from the teacher's where widths allow, and padding teaches nothing."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from secateur import Config, Distillation, Pruner, distillation_loss
from secateur.errors import ConfigError

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 3
Output = namedtuple("Output", ["last", "others"])


class Block(nn.Module):
    """Adds to its input what passes a hidden width of 12; returns it in one of several forms."""

    def __init__(self, width: int, form: str):
        super().__init__()
        self.up, self.down, self.form = nn.Linear(width, 12), nn.Linear(12, width), form

    def forward(self, x: Tensor) -> Any:
        y = x + self.down(torch.relu(self.up(x)))
        made = {"tensor": y, "tuple": (y, None), "dict": {"h": y}, "named": Output(y, 1)}
        return made[self.form]


class Net(nn.Module):
    """Two blocks on (n, 6) or (n, positions, 6)."""

    def __init__(self, form: str = "tensor", again: bool | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(6, form), Block(6, form)])
        self.head, self.again = nn.Linear(6, 3), again

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            plain = self.again is None
            x = block(x) if plain else checkpoint(block, x, use_reentrant=self.again)
            if not isinstance(x, Tensor):
                x = x["h"] if isinstance(x, dict) else x[0]
        return self.head(x)


def moved(model: nn.Module) -> nn.Module:
    """Return the model with other weights."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.mul_(1 + 0.1 * i)
    return model


def states(model: Net, x: Tensor) -> list[Tensor]:
    found = []
    for block in model.blocks:
        y = block(x)
        x = y if isinstance(y, Tensor) else (y["h"] if isinstance(y, dict) else y[0])
        found.append(x)
    return found


def relative(mine: Tensor, told: Tensor) -> Tensor:
    return (mine - told).square().sum() / told.square().sum()


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "named"])
@pytest.mark.parametrize("factor", [1.0, 2.5, 0.0])
def test_call_when_layers_are_named_then_their_relative_error_is_added(
    form: str, factor: float
) -> None:
    model = Net(form)
    dense = copy.deepcopy(model).eval()
    distillation = Distillation(
        model, weight=0.6, temperature=2.0, hidden=["blocks.?"], hidden_weight=factor
    )
    moved(model)
    loss = F.cross_entropy(model(X), Y)
    found = distillation(loss)
    with torch.no_grad():
        told = states(dense, X)
        logits = dense(X)
    errors = [relative(a, b) for a, b in zip(states(model, X), told, strict=True)]
    expected = 0.4 * loss + 0.6 * (
        distillation_loss(model(X), logits, 2.0) + factor * sum(errors) / 2
    )
    torch.testing.assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, list(model.parameters()), retain_graph=True),
        torch.autograd.grad(expected, list(model.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert distillation.matched == ("blocks.0", "blocks.1")


@pytest.mark.parametrize("layout", ["attention_mask", "by position"])
def test_call_when_positions_are_padded_then_they_teach_nothing(layout: str) -> None:
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    found = []
    for padding in (0.0, 1e3):
        model = Net()
        distillation = Distillation(model, weight=1.0, hidden=["blocks.*"])
        moved(model)
        given = x.masked_fill(mask[..., None] == 0, padding)
        model(given, mask) if layout == "by position" else model(given, attention_mask=mask)
        distillation(torch.zeros(())).backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    short = Net()
    distillation = Distillation(short, weight=1.0, hidden=["blocks.*"])
    moved(short)
    short(torch.cat([x[0, :3], x[1, :4]])[:, None])  # the same positions, without any padding
    distillation(torch.zeros(())).backward()
    for a, p in zip(found[0], short.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


class Sequence(Net):
    """Positions come before the batch, as torch's layers have them by default."""

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


def test_call_when_positions_come_first_then_padding_teaches_nothing_either() -> None:
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    found = []
    for padding in (0.0, 1e3):
        model = Sequence()
        distillation = Distillation(model, weight=1.0, hidden=["blocks.*"])
        moved(model)
        model(x.masked_fill(mask.T[..., None] == 0, padding), mask)
        distillation(torch.zeros(())).backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


class Translator(nn.Module):
    """Has its outputs at the positions of its second input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        y: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        seen = self.encoder(x)
        if attention_mask is not None:
            seen = seen * attention_mask[..., None]
        return self.head(torch.relu(self.decoder(y)) + seen.mean(1, keepdim=True))


@pytest.mark.parametrize("told", ["both", "encoder", "decoder"])
def test_call_when_a_decoder_speaks_then_its_own_padding_counts(told: str) -> None:
    draw = torch.Generator().manual_seed(2)
    x, y = (torch.randn(2, 4, 6, generator=draw) for _ in range(2))
    heard, said = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]), torch.tensor([[1, 0, 0, 0], [1] * 4])
    masks = {
        **({} if told == "decoder" else {"attention_mask": heard}),
        **({} if told == "encoder" else {"decoder_attention_mask": said}),
    }
    model = Translator()
    dense = copy.deepcopy(model)
    distillation = Distillation(model, weight=1.0)
    moved(model)
    mine = model(x, y=y, **masks)
    where = said.bool() if told != "encoder" else torch.ones(2, 4, dtype=torch.bool)
    expected = distillation_loss(mine[where], dense(x, y=y, **masks)[where], 4.0)
    torch.testing.assert_close(distillation(torch.zeros(())), expected)


def test_call_when_the_teachers_outputs_are_zero_then_they_have_no_share() -> None:
    model = Net()
    for parameter in model.blocks[0].down.parameters():
        nn.init.zeros_(parameter)
    distillation = Distillation(model, weight=1.0, hidden=["blocks.0.down", "blocks.1"])
    moved(model)
    with torch.no_grad():
        model.blocks[0].down.bias.add_(1)
    model(X)
    loss = distillation(torch.zeros(()))
    loss.backward()
    assert 0 < float(loss.detach()) < 100
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_forward_when_a_list_is_named_then_says_that_it_never_runs() -> None:
    model = Net()
    distillation = Distillation(model, hidden=["blocks"])
    with pytest.raises(ConfigError, match="none of blocks runs"):
        model(X)
    assert not distillation.waits


def test_forward_when_it_was_dropped_then_nothing_is_kept() -> None:
    model = Net()
    kept = Distillation(model, hidden=["blocks.*"])._hidden
    assert kept is not None
    sides, gone = kept._sides, weakref.ref(kept)
    del kept
    gc.collect()
    model(X)
    assert gone() is None
    assert not any(side.made for side in sides)


def test_finish_when_widths_were_pruned_then_the_others_are_matched_on() -> None:
    model = Net()
    distillation = Distillation(model, weight=1.0, hidden=["blocks*"])
    pruner = Pruner(model, Config(sparsity=0.5), X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    distillation(model(X).sum() * 0).backward()
    assert {"blocks.0.up", "blocks.0"} <= set(distillation.matched)
    optimizer.step()
    pruner.step()
    smaller = pruner.finish().model
    assert smaller.blocks[0].up.out_features == 6
    distillation(smaller.train()(X).sum() * 0).backward()
    still = {"blocks.0", "blocks.0.down", "blocks.1", "blocks.1.down"}
    assert set(distillation.matched) == still


def test_call_when_a_cut_leaves_no_width_then_says_so_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Net()
    distillation = Distillation(model, weight=1.0, hidden=["*.up"])
    pruner = Pruner(model, Config(sparsity=0.5), X)
    distillation(model(X).sum() * 0)
    pruner.step()
    pruner.finish()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            logits = model.train()(X)
            loss = distillation(logits.sum() * 0)
    torch.testing.assert_close(loss, distillation_loss(logits, distillation.teacher(X), 4.0))
    assert [r.message for r in caplog.records] == [
        "hidden: no layer has outputs of the teacher's shape any longer"
    ]


def test_forward_when_no_width_was_ever_alike_then_says_what_to_name() -> None:
    model, teacher = Net(), Net()
    for block in model.blocks:
        block.up, block.down = nn.Linear(6, 4), nn.Linear(4, 6)
    distillation = Distillation(model, teacher, hidden=["*.up"])
    with pytest.raises(ConfigError, match=r"blocks\.0\.up.*whole blocks"):
        model(X)
    assert not distillation.waits


@pytest.mark.parametrize("words", [["bloks.*"], ["blocks.*", "layer"], "layer"])
def test_init_when_a_word_names_no_layer_then_says_which(words: Any) -> None:
    model = Net()
    with pytest.raises(ConfigError, match="names no layer of both"):
        Distillation(model, hidden=words)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_init_when_the_weight_is_no_weight_then_says_so(weight: float) -> None:
    with pytest.raises(ConfigError, match="hidden_weight"):
        Distillation(Net(), hidden=["blocks.*"], hidden_weight=weight)


def _plain(model: Net) -> Callable[..., Any]:
    return model


def _compiled(model: Net) -> Callable[..., Any]:
    return torch.compile(model, backend="eager")


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, while it compiles
@pytest.mark.parametrize("run", [_plain, pytest.param(_compiled, marks=pytest.mark.slow)])
def test_forward_when_layers_run_again_or_elsewhere_then_only_the_models_count(run: Any) -> None:
    found = []
    for again in (None, False):
        model = Net(again=again)
        distillation = Distillation(model, weight=1.0, hidden=["blocks.?"])
        moved(model)
        model.blocks[0](X)  # alone
        model.eval()(X)
        copy.deepcopy(model).train()(X)
        model.train()
        for _ in range(2):  # forwards before one loss, and what a backward computes again
            run(model)(X)
        distillation(torch.zeros(())).backward()
        run(model)(X)
        distillation(torch.zeros(())).backward()
        found.append([p.grad for p in model.parameters()])
        distillation.close()
        hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
        assert not any(hooks)
        assert not any(m._forward_hooks for m in distillation.teacher.modules())
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
