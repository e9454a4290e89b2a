"""What each block is worth: rankings of blocks by what calibration data show, smaller matters less.

A ranking is one function below ``block_rankings.register``:
``(model, blocks, batches, skipped) → scores``, one number for each block, where ``skipped`` are
those that go already.  The model is the user's, and left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.graph.blocks import Block
from secateur.registry import Registry
from secateur.repair.quality import distances, rows_of
from secateur.replacements.passing import Passing, argument, given, skipping
from secateur.runtime.batches import call, padding
from secateur.runtime.copying import copied
from secateur.runtime.forward import evaluating, undisturbed
from secateur.runtime.undo import Undo, unhook_module

block_rankings = Registry("ranking of blocks", takes="model, blocks, batches, skipped")
"""What each block is worth: ``(model, blocks, batches, skipped) → scores``, one for each block."""
Skipped = Mapping[str, Passing]
NONE: Skipped = {}


@block_rankings.register
def influence(
    model: nn.Module, blocks: Sequence[Block], batches: Sequence[Any], skipped: Skipped = NONE
) -> list[float]:
    """How much a block turns its stream: one minus the mean cosine of its input and its output.

    One pass for all blocks.  Of ``(batch, length, width)`` each token counts once, and padding not
    at all; of an image all of it is one vector.

    Men et al., 2024, arXiv:2403.03853
    """
    meters = [_Meter(model, block) for block in blocks]
    with (
        undisturbed(model),
        evaluating(model),
        torch.no_grad(),
        skipping(model, skipped),
        Undo() as undo,
    ):
        for meter, block in zip(meters, blocks, strict=True):
            module = model.get_submodule(block.name)
            note, measure = meter.note, meter.measure
            undo(partial(unhook_module, module, note))
            module.register_forward_pre_hook(note, with_kwargs=True)
            undo(partial(unhook_module, module, measure))
            module.register_forward_hook(measure)
        for index, batch in enumerate(batches):
            masks = padding(model, batch)
            for meter in meters:
                meter.padding = masks
            call(model, batch, index)
    return [meter.score for meter in meters]


@block_rankings.register
def error(
    model: nn.Module, blocks: Sequence[Block], batches: Sequence[Any], skipped: Skipped = NONE
) -> list[float]:
    """What the outputs lose when a block is skipped, beside those that go already: one pass each.

    The dense model runs once for all blocks.

    The mean Kullback-Leibler divergence of predictions, in nats, where the model returns logits;
    elsewhere the error of its outputs beside their spread.  Padding does not count.

    >>> from secateur import analyze
    >>> net = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, dropout=0) for _ in range(2)))
    >>> x = torch.randn(3, 4, 8)
    >>> blocks = analyze(net.eval(), x).blocks
    >>> [score > 0 for score in error(net, blocks, [x])]
    [True, True]
    """
    other = copied(model, borrowing=True)

    @contextmanager
    def without(block: Block) -> Iterator[nn.Module]:
        with skipping(other, {**skipped, block.name: (block.position, block.returns)}):
            yield other

    found = distances(model, [partial(without, block) for block in blocks], batches)
    return [each.error if each.kl is None else each.kl for each in found]


class _Meter:
    """Sums the cosines of a block's inputs and outputs."""

    def __init__(self, model: nn.Module, block: Block):
        self.passes = argument(type(model.get_submodule(block.name)), block.position)
        self.part = None if block.returns is None else block.returns.index(True)
        self.padding: Sequence[Tensor] = ()
        self.before = torch.empty(0)
        self.total, self.many = 0.0, 0

    def note(self, _: nn.Module, arguments: Any, options: Any) -> None:
        self.before = given(self.passes, arguments, options).detach().clone()

    def measure(self, _: nn.Module, arguments: Any, out: Any) -> None:
        after = out if self.part is None else out[self.part]
        x, y = (self._rows(each) for each in (self.before, after))
        cosines = F.cosine_similarity(x, y, dim=-1)
        self.total, self.many = self.total + float(cosines.sum()), self.many + len(cosines)

    def _rows(self, x: Tensor) -> Tensor:
        return rows_of(x, self.padding) if x.ndim <= 3 else x.flatten(1).double()

    @property
    def score(self) -> float:
        return 1 - self.total / self.many if self.many else inf
