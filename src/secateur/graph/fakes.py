"""Tensors that have shapes and no data, in place of a model's own while its forward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from secateur.runtime.undo import Undo, in_mode


@contextmanager
def standing_in(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Let a model run on fake tensors; yields the function tensor → what stands in for it."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                new = torch.empty_strided(
                    tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu"
                )
            made[id(tensor)] = (tensor, new)  # the tensor too, so that its id stays its own
        return made[id(tensor)][1]

    with Undo() as undo:
        for module in model.modules():
            tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for table in tables:
                for name, tensor in list(table.items()):
                    if tensor is not None:
                        undo(partial(table.__setitem__, name, tensor))
                        table[name] = fake(tensor)
        with in_mode(mode):
            yield fake


def lacks_values(error: BaseException | None) -> bool:
    """Tell whether a forward failed because it reads values."""
    return isinstance(error, (DataDependentOutputException, DynamicOutputShapeException))


def shape_only(op: Any) -> Callable[..., Tensor] | None:
    """Return what makes an operation's fake output, where torch's own insists on too much."""
    return _SHAPE_ONLY.get(op)


def _grouped_mm(x: Tensor, weight: Tensor, offsets: Tensor | None = None, *_: Any) -> Tensor:
    if x.dim() == 2 and weight.dim() == 3:
        return x.new_empty(x.shape[0], weight.shape[-1])
    return torch.ops.aten._grouped_mm.default(x, weight, offsets)


_SHAPE_ONLY: dict[Any, Callable[..., Tensor]] = {}
if hasattr(torch.ops.aten, "_grouped_mm"):  # its fake kernel wants bfloat16, the real one does not
    _SHAPE_ONLY[torch.ops.aten._grouped_mm.default] = _grouped_mm
