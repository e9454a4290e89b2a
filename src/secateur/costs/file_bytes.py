"""Bytes of the file that a model's weights are saved in."""

from __future__ import annotations

import json
from math import prod
from typing import Any

import torch

from secateur.graph.cost import human_bytes
from secateur.graph.lengths import now
from secateur.runtime.io import BOUND

from .cost import Cost, Count, Subject, cost

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.complex64: "C64", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""How a safetensors file names what its tensors are of."""


class FileBytes(Cost):
    """The size of ``model.safetensors``, its header included; tied tensors count once."""

    words = ("B", "bytes")

    def __init__(self, subject: Subject):
        super().__init__(subject)
        first: dict[int, str] = {}
        state = subject.model.state_dict(keep_vars=True)
        tensors = {n: t for n, t in state.items() if isinstance(t, torch.Tensor)}
        self.saved = {n: t for n, t in tensors.items() if first.setdefault(id(t), n) == n}

    @classmethod
    def name(cls) -> str:
        return "bytes"

    @classmethod
    def shown(cls, amount: float) -> str:
        return human_bytes(amount)

    def of(self, count: Count) -> float:
        shapes = {name: self._shape(name, count) for name in self.saved}
        return 8 + self._header(shapes) + sum(map(self._bytes, shapes, shapes.values()))

    def _shape(self, name: str, count: Count) -> tuple[int, ...]:
        inferred = self.subject.inferred
        recording = inferred.recording
        plain = recording.names.get(name, name)
        value = recording.parameters.get(plain, recording.buffers.get(plain))
        if value is None or value not in inferred.types:
            return tuple(self.saved[name].shape)
        return tuple(now(dim.axis, count) for dim in inferred.types[value].dims)

    def _bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return prod(shape) * self.saved[name].element_size()

    def _header(self, shapes: dict[str, tuple[int, ...]]) -> int:
        """Return the length of the header: JSON, padded to a multiple of 8."""
        said = {"format": "pt", "text": f"{BOUND}{'0' * 64}"}
        entries: dict[str, Any] = {"__metadata__": said}
        start = 0
        # the file's order: wide numbers first, then by name
        for name in sorted(shapes, key=lambda n: (-self.saved[n].element_size(), n)):
            end = start + self._bytes(name, shapes[name])
            code = CODES.get(self.saved[name].dtype, "F8_E4M3")
            entries[name] = {"dtype": code, "shape": shapes[name], "data_offsets": [start, end]}
            start = end
        length = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
        return -(-length // 8) * 8


cost(FileBytes)
