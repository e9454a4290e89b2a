"""Tensors whose numbers are positions of an axis: who may touch them, so that they stay right.

A router's ``topk`` returns numbers of experts.  When experts go, the smaller router returns the
numbers of those that are left, in the same order: right for whoever looks up the experts' own axis,
counts them or sorts by them, and wrong for whoever computes with them, which keeps the axis whole.
"""

from __future__ import annotations

from typing import Any

import torch

MOVES = """view _unsafe_view reshape _reshape_alias flatten clone alias detach contiguous _to_copy
to lift_fresh transpose permute t unsqueeze squeeze expand select slice unbind split
split_with_sizes chunk sort index gather repeat_interleave index_select"""
READS = """argsort scatter scatter_ histc bincount one_hot nonzero zeros_like ones_like empty_like
full_like new_zeros new_ones new_empty new_full"""


def _packets(names: str) -> set[Any]:
    found = (getattr(torch.ops.aten, name, None) for name in names.split())
    return {packet for packet in found if packet is not None}


KEEPING = _packets(MOVES)
READING = KEEPING | _packets(READS)


def keeps_numbers(op: Any) -> bool:
    """Tell whether an operation only moves the elements of its first argument."""
    return getattr(op, "overloadpacket", None) in KEEPING


def reads_numbers(op: Any) -> bool:
    """Tell whether an operation stays right when positions are numbered anew, in their order."""
    return getattr(op, "overloadpacket", None) in READING
