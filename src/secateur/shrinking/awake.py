"""What zeros hide: behind a gate or a last layer that starts at zero, no check sees anything.

ReZero, a zero-initialised last norm of each residual branch, LoRA's second factor: until they are
trained, a branch may compute what it likes.  So models are compared with other numbers in there.

Bachlechner et al., 2020, arXiv:2003.04887 (ReZero); Goyal et al., 2017, arXiv:1706.02677
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
from torch import nn

from secateur.runtime.distributed import sharded

from .cut import Surgery

LEAST, MOST = 0.1, 0.3
"""Sizes of gates: branches behind one another must not grow without bound."""
NAMED = 3


def asleep(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters that are zero throughout, but for biases: these hide nothing.

    >>> net = nn.Linear(2, 2)
    >>> _ = nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
    >>> [name for name, _ in asleep(net)]
    ['weight']
    """
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if not name.endswith("bias") and _is_zero(parameter)
    ]


def _is_zero(parameter: nn.Parameter) -> bool:
    if parameter.is_meta or not parameter.numel() or sharded(parameter):
        return False
    if not parameter.is_floating_point():
        return False
    tensor = parameter.detach()
    return not bool(tensor[(0,) * tensor.ndim]) and not bool(tensor.any())


@contextmanager
def awake(surgery: Surgery, asked: Collection[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Let a model's zero parameters hold other numbers, always the same ones, until the end.

    Those that are left then are zero again, as large as they are by then.

    Args:
        surgery: of the model.
        asked: parameters that stay zero, because code asks for their numbers: with others it might
            go another way, or refuse them.

    Yields:
        The names of those, and of the zeros that code asks for.
    """
    every = [(name, parameter, parameter.data) for name, parameter in asleep(surgery.model)]
    some = [each for each in every if each[0] not in asked]
    generator = torch.Generator().manual_seed(0)
    for _, parameter, zeros in some:
        numbers = torch.rand(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            numbers = (numbers - 0.5) * 2 / prod(parameter.shape[1:]) ** 0.5
        else:
            numbers = LEAST + (MOST - LEAST) * numbers
        surgery.set_data(parameter, torch.empty_like(zeros).copy_(numbers))
    yield [name for name, *_ in some], [name for name, *_ in every if name in asked]
    for name, parameter, zeros in some:
        surgery.rescaled.pop(name, None)
        whole = parameter.shape == zeros.shape  # in the very memory that it had
        surgery.set_data(parameter, zeros if whole else torch.zeros_like(parameter.detach()))


def besides(woken: Sequence[str]) -> str:
    """Say what else may be why a model fails, while some of its parameters are woken."""
    if not woken:
        return ""
    return (
        f". What is zero ({_few(woken)}) holds other numbers meanwhile, so that what it hides is "
        "compared: a forward that needs the zeros can be cut with verify=False alone"
    )


def hidden(zero: Sequence[str]) -> Iterator[str]:
    """Yield what to say of zeros that stayed what they are."""
    if zero:
        yield f"compared: not what the zeros of {_few(zero)} hide, because forward asks for them"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more
