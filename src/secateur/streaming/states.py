"""The stream between two blocks, of every batch, in files: memory holds one batch at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from secateur.runtime.io import read_tensors, write_tensors
from secateur.runtime.together import Seal, seal_of, sealed

from .alone import Rest

DENSE, PRUNED, CUT = "dense", "pruned", "cut"
"""Behind blocks of the dense model; behind masked and repaired ones; behind those that were cut."""


@dataclass(frozen=True)
class States:
    """Files of streams in one folder, each named by its kind, its place and its batch."""

    folder: Path

    def path(self, kind: str, place: int, batch: str) -> Path:
        """Return where a stream is: before the block with the number ``place``."""
        return self.folder / f"{place}-{kind}-{batch}.safetensors"

    def write(self, kind: str, place: int, batch: str, stream: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path(kind, place, batch), {"stream": stream.cpu()})

    def read(self, kind: str, place: int, batch: str) -> Tensor:
        return read_tensors(self.path(kind, place, batch))["stream"]

    def seals(self, place: int) -> dict[str, Seal]:
        """Return the seals of all streams before a block."""
        return {path.name: seal_of(path) for path in sorted(self.folder.glob(f"{place}-*"))}

    def check(self, seals: Mapping[str, Seal]) -> None:
        """Raise a FileError if files are others than those that were sealed."""
        for name, seal in seals.items():
            with sealed(self.folder, name, seal):
                pass

    def keep(self, place: int) -> None:
        """Remove all streams but those before one block."""
        for path in self.folder.glob("*.safetensors"):
            if not path.name.startswith(f"{place}-"):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Given(Sequence[Any]):
    """What one block is given on each batch; a stream is read when it is asked for.

    Attributes:
        states: where streams are.
        kind: of which there are several.
        place: the number of the block.
        batches: their names.
        rests: for each batch, what the block is given besides.
        tokens: for each batch, which positions hold data.
    """

    states: States
    kind: str
    place: int
    batches: Sequence[str]
    rests: Mapping[str, Rest]
    tokens: Mapping[str, Mapping[str, Tensor]]

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        batch = self.batches[index]
        return self.states.read(self.kind, self.place, batch), self.rests[batch], self.tokens[batch]
