"""Operations of which every result depends on all positions, or on the place of each.

No position of what they touch may go.  They have a rule so that the reason says what they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from secateur.graph.typing import Typed, Typing

from .indexing import like
from .table import rule


def _tensors(x: Any) -> Iterator[Typed]:
    if isinstance(x, Typed):
        yield x
    elif isinstance(x, (list, tuple)):
        for part in x:
            yield from _tensors(part)


def _frozen(t: Typing, why: str, *args: Any) -> tuple[Typed, ...]:
    for each in _tensors(args):
        t.freeze(each, why)
    return tuple(t.opaque(shape, why) for shape in t.out)


@rule(
    """linalg_solve_triangular _linalg_det _linalg_slogdet linalg_inv_ex linalg_qr _linalg_svd
    _linalg_eigh linalg_eig linalg_cholesky_ex cholesky_solve cholesky_inverse
    _linalg_solve_ex linalg_matrix_exp linalg_pinv linalg_lstsq linalg_lu linalg_lu_factor_ex
    linalg_lu_solve _linalg_check_errors"""
)
def decomposed(t: Typing, *args: Any, **options: Any) -> tuple[Typed, ...]:
    """A matrix is taken apart, solved for or inverted."""
    return _frozen(t, "it is a matrix that is decomposed or solved for", *args, *options.values())


@rule(
    """multinomial bernoulli bernoulli_ normal_ uniform_ exponential_ log_normal_ cauchy_ geometric_
    random_ poisson"""
)
def drawn(t: Typing, *args: Any, **options: Any) -> Any:
    """A random number for each place; in training others are drawn each time anyway."""
    if t.training and isinstance(args[0], Typed) and args[0].shape == t.out[0]:
        return like(t, args[0])
    return _frozen(t, "numbers are drawn for its positions", *args, *options.values())


@rule("nll_loss_forward", "nll_loss2d_forward", "multi_margin_loss", "_ctc_loss")
def judged(t: Typing, *args: Any, **options: Any) -> tuple[Typed, ...]:
    """A loss that looks classes up by number."""
    return _frozen(t, "a loss looks its positions up by number", *args, *options.values())


@rule(
    "take", "put", "put_", "masked_scatter", "masked_scatter_", "isin", "repeat_interleave.Tensor"
)
def by_place(t: Typing, *args: Any, **options: Any) -> tuple[Typed, ...]:
    """Elements are found by their place in memory, or by value."""
    return _frozen(t, "its elements are found by place or by value", *args, *options.values())


@rule(
    """trace block_diag diagonal_scatter rot90 affine_grid_generator unfold_backward
    _pdist_forward"""
)
def rearranged(t: Typing, *args: Any, **options: Any) -> tuple[Typed, ...]:
    """Positions are read at places that depend on how many there are."""
    return _frozen(t, "an operation mixes its positions", *args, *options.values())
