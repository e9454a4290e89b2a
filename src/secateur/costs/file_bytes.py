"""Bytes of the file that a model's weights are saved in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from secateur.graph.cost import human_bytes
from secateur.graph.lengths import now
from secateur.runtime.io import BOUND
from secateur.runtime.published import published

from .cost import Cost, Count, Subject, cost

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.complex64: "C64", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""How a safetensors file names what its tensors are of."""


class FileBytes(Cost):
    """The size of ``model.safetensors``, its header included; tied tensors count once.

    Where a class of transformers saves other names than the model has, the longer header counts:
    which one is written is known once a cut is.
    """

    words = ("B", "bytes")

    def __init__(self, subject: Subject):
        super().__init__(subject)
        first: dict[int, str] = {}
        state = subject.model.state_dict(keep_vars=True)
        tensors = {n: t for n, t in state.items() if isinstance(t, torch.Tensor)}
        self.saved = {n: t for n, t in tensors.items() if first.setdefault(id(t), n) == n}
        kinds = {name: (tuple(t.shape), t.dtype) for name, t in self.saved.items()}
        other = published(subject.model, kinds)
        self.more = 0 if other is None else max(0, len(_entries(other)) - len(_entries(kinds)))
        """Bytes by which their header is longer, which only gets less where positions go."""

    @classmethod
    def name(cls) -> str:
        return "bytes"

    @classmethod
    def shown(cls, amount: float) -> str:
        return human_bytes(amount)

    def of(self, count: Count) -> float:
        kinds = {name: (self._shape(name, count), t.dtype) for name, t in self.saved.items()}
        header = -(-(len(_entries(kinds)) + self.more) // 8) * 8  # padded
        return 8 + header + sum(_bytes(*kind) for kind in kinds.values())

    def _shape(self, name: str, count: Count) -> tuple[int, ...]:
        inferred = self.subject.inferred
        recording = inferred.recording
        plain = recording.names.get(name, name)
        value = recording.parameters.get(plain, recording.buffers.get(plain))
        if value is None or value not in inferred.types:
            return tuple(self.saved[name].shape)
        return tuple(now(dim.axis, count) for dim in inferred.types[value].dims)


def _entries(kinds: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> bytes:
    """Return the header of a file with tensors of such names, shapes and types, unpadded."""
    said = {"format": "pt", "text": f"{BOUND}{'0' * 64}"}
    entries: dict[str, Any] = {"__metadata__": said}
    start = 0
    # the file's order: wide numbers first, then by name
    for name in sorted(kinds, key=lambda n: (-kinds[n][1].itemsize, n)):
        shape, dtype = kinds[name]
        end = start + _bytes(shape, dtype)
        code = CODES.get(dtype, "F8_E4M3")
        entries[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
        start = end
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return prod(shape) * dtype.itemsize


cost(FileBytes)
