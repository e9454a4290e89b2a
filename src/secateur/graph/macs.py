"""Multiply-accumulates of one operation, from the shapes of what it reads and makes.

What is counted are contractions: products that are summed.  Norms, activations, pooling and
look-ups are not, by the convention of every counter; what does contract and has no formula is
named by ``uncounted``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from .program import Op

Shape = tuple[int, ...]
Formula = Callable[..., int]

FORMULAS: dict[Any, Formula] = {}
"""For what torch's own table lacks, functions of the arguments, in which tensors are shapes."""

WITHOUT = """_fft_c2c _fft_r2c _fft_c2r _linalg_det _linalg_slogdet linalg_inv_ex linalg_qr
_linalg_svd _linalg_eigh linalg_eig linalg_cholesky_ex cholesky_solve cholesky_inverse
_linalg_solve_ex linalg_solve_triangular linalg_matrix_exp linalg_pinv linalg_lstsq linalg_lu
linalg_lu_factor_ex linalg_lu_solve mkldnn_rnn_layer _cudnn_rnn _sparse_addmm _sparse_mm
_native_multi_head_attention _transformer_encoder_layer_fwd"""


def _packets(names: str) -> Iterator[Any]:
    for name in names.split():
        packet = getattr(torch.ops.aten, name, None)
        if packet is not None:  # this version of torch has it
            yield packet


UNCOUNTED = frozenset(_packets(WITHOUT))


def _formula(names: str) -> Callable[[Formula], Formula]:
    def register(function: Formula) -> Formula:
        for packet in _packets(names):
            if packet not in flop_registry:
                FORMULAS[packet] = function
        return function

    return register


@_formula("mv dot vdot")
def _with_vector(x: Shape, y: Shape, *_: Any) -> int:
    return prod(x)


@_formula("addmv addmv_")
def _added_to_vector(bias: Shape, x: Shape, *_: Any) -> int:
    return prod(x)


@_formula("_grouped_mm _scaled_grouped_mm _int_mm mm bmm")
def _with_matrix(x: Shape, y: Shape, *_: Any) -> int:
    """Every row meets one matrix, whichever of a stack it is."""
    return prod(x) * y[-1]


@_formula("addmm_ baddbmm_ addbmm addbmm_ _addmm_activation")
def _added_to_matrix(bias: Shape, x: Shape, y: Shape, *_: Any) -> int:
    return prod(x) * y[-1]


@_formula("linear")
def _linear(x: Shape, weight: Shape, *_: Any) -> int:
    return prod(x) * weight[0]


@_formula("conv_tbc")
def _line(x: Shape, weight: Shape, bias: Shape, pad: int = 0) -> int:
    return (x[0] + 2 * pad - weight[0] + 1) * x[1] * prod(weight)


@_formula("_trilinear")
def _three(*given: Any) -> int:
    """One product for each element of the whole grid."""
    tensors, ones = given[:3], given[3:6]
    rank = len(tensors[0]) + len(ones[0])
    sizes = [1] * rank
    for shape, expanded in zip(tensors, ones, strict=True):
        places = [place for place in range(rank) if place not in expanded]
        for place, size in zip(places, shape, strict=True):
            sizes[place] = max(sizes[place], size)
    return prod(sizes)


@_formula("_cdist_forward _euclidean_dist")
def _distances(x: Shape, y: Shape, *_: Any) -> int:
    batch = max(prod(x[:-2]), prod(y[:-2]))
    return batch * x[-2] * y[-2] * x[-1]


@_formula(
    """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
    _scaled_dot_product_fused_attention_overrideable scaled_dot_product_attention"""
)
def _attention(q: Shape, k: Shape, v: Shape, *_: Any) -> int:
    """Queries by keys, and the weights by values, masked or not."""
    return prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def macs_of(packet: Any, args: tuple[Any, ...], options: tuple[Any, ...], outs: Any) -> int:
    """Return the multiply-accumulates of one operation; 0 where it contracts nothing.

    Args:
        packet: the operation.
        args: its arguments, with each tensor replaced by its shape.
        options: its keyword arguments, as pairs.
        outs: the shapes of what it makes.

    >>> macs_of(torch.ops.aten.mm, ((4, 8), (8, 3)), (), ((4, 3),))
    96
    >>> macs_of(torch.ops.aten._grouped_mm, ((4, 8), (2, 8, 3), (2,)), (), ((4, 3),))
    96
    """
    if packet in FORMULAS:
        return FORMULAS[packet](*args)
    return _by_torch(packet, args, options, outs) // 2 if packet in flop_registry else 0


@lru_cache(maxsize=2**16)  # a search for a budget asks for the same shapes again and again
def _by_torch(packet: Any, args: tuple[Any, ...], options: tuple[Any, ...], outs: Any) -> int:
    out = outs[0] if len(outs) == 1 else list(outs)
    return int(flop_registry[packet](*args, **dict(options), out_val=out))


def contracts(packet: Any) -> bool:
    """Tell whether an operation's multiply-accumulates are counted."""
    return packet in FORMULAS or packet in flop_registry


def uncounted(ops: list[Op], unknown: dict[str, Any]) -> tuple[str, ...]:
    """Return the operations that ran of which nobody knows how much they multiply."""
    names = {op.name for op in ops if getattr(op.func, "overloadpacket", None) in UNCOUNTED}
    silent = {op.name for op in ops if contracts(getattr(op.func, "overloadpacket", None))}
    return tuple(sorted(names | (unknown.keys() - silent)))
