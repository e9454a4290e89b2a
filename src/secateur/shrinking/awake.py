"""What zeros hide: behind a gate or a last layer that starts at zero, no check sees anything.

ReZero, a zero-initialised last norm of each residual branch, LoRA's second factor: until they are
trained, a branch may compute what it likes.  So models are compared with other numbers in there.

Bachlechner et al., 2020, arXiv:2003.04887 (ReZero); Goyal et al., 2017, arXiv:1706.02677
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import nn

from secateur.runtime.distributed import sharded

from .cut import Surgery

LEAST, MOST = 0.1, 0.3
"""Sizes of gates: branches behind one another must not grow without bound."""


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
def awake(surgery: Surgery) -> Iterator[None]:
    """Let a model's zero parameters hold other numbers, always the same ones, until the end.

    Those that are left then are zero again, as large as they are by then.
    """
    some = [(name, parameter, parameter.data) for name, parameter in asleep(surgery.model)]
    generator = torch.Generator().manual_seed(0)
    for _, parameter, zeros in some:
        numbers = torch.rand(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            numbers = (numbers - 0.5) * 2 / prod(parameter.shape[1:]) ** 0.5
        else:
            numbers = LEAST + (MOST - LEAST) * numbers
        surgery.set_data(parameter, torch.empty_like(zeros).copy_(numbers))
    yield
    for name, parameter, zeros in some:
        surgery.rescaled.pop(name, None)
        whole = parameter.shape == zeros.shape  # in the very memory that it had
        surgery.set_data(parameter, zeros if whole else torch.zeros_like(parameter.detach()))
