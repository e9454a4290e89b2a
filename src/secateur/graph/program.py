"""A recorded forward: the operations that ran, and the tensors that they made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .lengths import Attribute, Origin
from .typing import Provenance


@dataclass(frozen=True)
class Ref:
    """A recorded tensor, by its number."""

    value: int


@dataclass(frozen=True)
class Op:
    """One executed operation."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Ref, ...]
    module: str
    line: str
    call: Provenance
    updates: tuple[int, int] | None = None  # in place: (value before, value after)

    @property
    def name(self) -> str:
        """As in ``aten.view.default``."""
        return str(self.func)


@dataclass(frozen=True)
class Number:
    """A number that the code computed from a size: it changes when the size does."""

    origin: Origin
    module: str
    line: str


@dataclass
class Recording:
    """All operations of one forward, and what the tensors are."""

    ops: list[Op] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    itemsize: list[int] = field(default_factory=list)
    integers: set[int] = field(default_factory=set)  # values of an integer or bool type
    owner: list[int] = field(default_factory=list)  # the value whose memory this one is
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    parameters: dict[str, int] = field(default_factory=dict)  # canonical names
    buffers: dict[str, int] = field(default_factory=dict)
    numbers: list[Number] = field(default_factory=list)
    decisions: dict[str, set[Attribute]] = field(default_factory=dict)  # compared, by module
    names: dict[str, str] = field(default_factory=dict)  # every name → the canonical one
