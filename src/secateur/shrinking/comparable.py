"""Outputs that nothing can be compared with: NaN equals nothing, and a check would see none."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.errors import ConfigError
from secateur.types import Example, call_arguments


def check_comparable(example: Example, outputs: Sequence[Tensor]) -> None:
    """Look at what a model makes of the example before another is compared with it.

    Raises:
        ConfigError: NaN goes in and comes out, or nothing else comes out, or no tensor at all.

    >>> import torch
    >>> check_comparable(torch.zeros(2), [torch.tensor([1.0, float("nan")])])
    """
    if not outputs:
        raise ConfigError(
            "forward returns no tensors, arrays or floats that can be found: nothing can be "
            "compared. Let it return what it computes (or give verify=False)"
        )
    floats = [out for out in outputs if out.is_floating_point() or out.is_complex()]
    if not any(_has_nan(out) for out in floats):
        return
    given = [x for x in tree_leaves(call_arguments(example)) if isinstance(x, Tensor)]
    if any(map(_has_nan, given)):
        raise ConfigError(
            "the example inputs hold NaN, and so do the outputs: nothing can be compared. Give an "
            "example of ordinary numbers (or verify=False)"
        )
    if all(bool(out.isnan().all()) for out in floats):
        raise ConfigError(
            "the outputs on the example inputs are NaN throughout: nothing can be compared. Check "
            "the weights, buffers and inputs (or give verify=False)"
        )


def _has_nan(tensor: Tensor) -> bool:
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return numbers and not tensor.is_meta and bool(tensor.isnan().any())
