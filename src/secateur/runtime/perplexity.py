"""Perplexity of a language model on a text, in windows, and how fast it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import ConfigError

from .batches import call
from .forward import evaluating, undisturbed
from .progress import shown


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text.

    Attributes:
        value: e to the mean loss of all predictions, in nats.
        predictions: how many tokens were predicted, each once.
        window: how many tokens the model reads at once, at most.
        stride: how far apart windows begin.
        windows: how many there were.
        tokens_per_second: that the model read, in windows that overlap more than once.
    """

    value: float
    predictions: int
    window: int
    stride: int
    windows: int
    tokens_per_second: float


def perplexity(
    model: nn.Module, tokens: Tensor, window: int, stride: int | None = None, size: int = 8
) -> Perplexity:
    """Return a causal language model's perplexity on tokens ``(length,)``.

    Windows begin every ``stride`` tokens, and each token counts in the first window that predicts
    it: with a stride below the window, all but the first ones have so much context at least.  The
    first token of a window has none, and without overlap it is not predicted.

    Args:
        model: takes ids ``(batch, length)``, and returns logits for each, as ``logits`` or alone.
        tokens: ids of a text.
        window: tokens that the model reads at once.
        stride: from 1 to ``window``, which is the default.
        size: windows of a batch.

    Raises:
        ConfigError: the text has no two tokens, a number is out of its range, or the model returns
            no logits.

    >>> net = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4))
    >>> _ = net[1].weight.data.zero_(), net[1].bias.data.zero_()
    >>> found = perplexity(net, torch.tensor([0, 1, 2, 3, 0, 1]), window=3)
    >>> round(found.value, 3), found.predictions, found.windows
    (4.0, 4, 2)
    """
    stride = window if stride is None else stride
    if len(tokens) < 2 or window < 2 or not 1 <= stride <= window or size < 1:
        raise ConfigError(
            f"a perplexity needs two tokens at least, a window of two, and a stride from 1 to the "
            f"window: got {len(tokens)} tokens, window {window}, stride {stride}, batches of {size}"
        )
    spans = list(_spans(len(tokens), window, stride))
    loss, predictions, read, seconds = 0.0, 0, 0, 0.0
    with undisturbed(model), evaluating(model), torch.no_grad():
        for some in shown(list(_alike(spans, size)), "evaluating"):
            ids = torch.stack([tokens[start:end] for start, end, _ in some])
            began = perf_counter()
            losses = _losses(model, ids)
            seconds += perf_counter() - began
            for row, (start, _, first) in zip(losses, some, strict=True):
                counted = row[first - start - 1 :]
                loss, predictions = loss + float(counted.sum()), predictions + len(counted)
            read += ids.numel()
    value = math.exp(min(loss / predictions, 700.0))
    return Perplexity(value, predictions, window, stride, len(spans), read / max(seconds, 1e-9))


def _spans(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield for each window where it starts, where it ends, and the first token that counts.

    >>> list(_spans(6, 4, 2))
    [(0, 4, 1), (2, 6, 4)]
    >>> list(_spans(5, 2, 2))
    [(0, 2, 1), (2, 4, 3)]
    """
    done = 0
    for start in range(0, length - 1, stride):
        end = min(start + window, length)
        first = max(done, start + 1)
        if first < end:
            yield start, end, first
        done = end
        if end == length:
            return


def _alike(spans: list[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield windows of one length, so many at once."""
    some: list[tuple[int, int, int]] = []
    for span in spans:
        if some and (len(some) == size or span[1] - span[0] != some[0][1] - some[0][0]):
            yield some
            some = []
        some.append(span)
    if some:
        yield some


def _losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the loss of each token but the first, ``(batch, length - 1)``."""
    out = call(model, ids)
    logits = getattr(out, "logits", out)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != ids.shape:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            f"a perplexity needs logits {(*ids.shape, '…')}, one prediction for each token, and "
            f"{type(model).__name__} returns {shape}"
        )
    found = logits[:, :-1].float().flatten(0, 1)
    target = ids[:, 1:].to(found.device).flatten()
    return F.cross_entropy(found, target, reduction="none").double().view(len(ids), -1)
