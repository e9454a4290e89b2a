"""The contents of a parameter or buffer, exchanged so that they can be put back bit for bit.

The object stays, and with it ties and the lists that optimizers, recurrent layers and users keep of
it: a new ``Parameter`` would leave them training the old one without a word.

To put back what was cut, only what went is remembered: what is left is in the tensor itself.  So
a cut in place takes no second copy of the model, but for tensors whose memory others look at, too.
"""

from __future__ import annotations

from sys import getrefcount
from typing import Any

import torch
from torch import Tensor

from secateur.runtime.release import release

from .slices import Choice, laid_out_as

_use_count: Any = getattr(torch._C, "_storage_Use_Count", None)


def put(tensor: Tensor, data: Tensor, gradient: Tensor | None) -> None:
    """Give a tensor other contents, of any shape, and their gradient."""
    tensor.grad = None
    if tensor.requires_grad and data.shape != tensor.shape:
        # While a graph is alive (somebody holds the last loss), torch keeps the node that adds up
        # this tensor's gradients, and hands it to the next forward; it checks them against the old
        # shape.  It makes a new node only where the type of the data changes, so let it change.
        other = torch.float32 if data.dtype == torch.float64 else torch.float64
        tensor.data = data.new_empty(0, dtype=other)
    tensor.data = data
    tensor.grad = gradient
    torch.clear_autocast_cache()  # it keeps copies of weights in another type by their objects


class Shortened:
    """A tensor loses positions of one dimension: ``do`` and ``undo``, which may run twice.

    The tensor is ``has_own_memory``, and without a gradient.

    >>> tensor = torch.tensor([5.0, 6.0, 7.0])
    >>> change = Shortened(tensor, Choice(0, (torch.tensor([0, 2]),)))
    >>> change.do()
    >>> tensor
    tensor([5., 7.])
    >>> change.undo()
    >>> tensor
    tensor([5., 6., 7.])
    """

    def __init__(self, tensor: Tensor, choice: Choice):
        self.tensor = tensor
        self.choice = choice
        self.shape, self.stride = tensor.shape, tensor.stride()
        self.gone = choice.gone(tensor.data)
        self.left: Tensor | None = laid_out_as(choice.left(tensor.data), tensor.data)

    def do(self) -> None:
        assert self.left is not None
        freed = self.tensor.nbytes
        put(self.tensor, self.left, None)
        self.left = None  # it is in the tensor, which may be cut further
        if self.tensor.device.type == "cpu":
            release(freed)

    def undo(self) -> None:
        if self.tensor.shape == self.shape:
            return
        if self.left is None:  # held until it is over: an interrupt may come in between
            self.left = self.tensor.data
        made = self.left.new_empty_strided(self.shape, self.stride)
        put(self.tensor, self.choice.whole(self.left, self.gone, made), None)


def has_own_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor is dense, and nobody else looks at its memory.

    A view, an array of numpy, another process, a file or a graph would go on with the old memory.

    >>> tensor = torch.zeros(4)
    >>> has_own_memory(tensor), has_own_memory(tensor[:2])
    (True, False)
    >>> view = tensor.view(2, 2)
    >>> has_own_memory(tensor)
    False
    """
    plain = type(tensor.data) is Tensor and tensor.layout is torch.strided and not tensor.is_meta
    if not plain or _use_count is None or tensor.is_inference() or tensor.is_quantized:
        return False
    if tensor.is_conj() or tensor.is_neg() or tensor.is_pinned():
        return False
    if _users(tensor) != _ALONE:
        return False
    memory = tensor.untyped_storage()
    if not memory.resizable() or memory.is_shared():
        return False
    return memory.nbytes() == tensor.numel() * tensor.element_size() and _is_dense(tensor)


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether each element has a place of its own, without a gap between them."""
    step = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _users(tensor: Tensor) -> tuple[int, int]:
    """Return how many tensors use a tensor's memory, and how many names in Python it has."""
    memory = tensor.untyped_storage()
    return _use_count(memory._cdata), getrefcount(memory)


_ALONE = _users(torch.empty(1, device="cpu")) if _use_count else (0, 0)
