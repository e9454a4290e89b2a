"""What a run has done so far: one file that is replaced whenever a block is finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secateur.errors import ConfigError
from secateur.repair import Repair
from secateur.repair.report import Distance, Refit
from secateur.runtime.io import read_text, write_text
from secateur.runtime.together import Seal, sealed
from secateur.shrinking import Plan, Verification
from secateur.shrinking.document import signed, unsigned

NAME, SCHEMA = "journal.json", 1


@dataclass(frozen=True)
class Done:
    """One finished block.

    Attributes:
        path: of the block.
        plan: what it keeps, by the names of the whole model.
        shapes: tensor → its shape now.
        verification: of the masked and the smaller block; None where nothing was cut.
        repair: what was refitted, and how far the block's outputs are from the dense model's
            before and after; None without data.
        weights: file → its seal.
        notes: what a user should know.
    """

    path: str
    plan: Plan
    shapes: Mapping[str, tuple[int, ...]]
    verification: Verification | None
    repair: Repair | None
    weights: Mapping[str, Seal]
    notes: tuple[str, ...] = ()


@dataclass
class Journal:
    """The blocks that are finished, and the streams that the next one is given.

    Attributes:
        folder: where the journal is, the weights and the streams.
        identity: what tells this run from every other: settings, checkpoint, batches.
        done: in the order of the blocks.
        states: file → its seal, of the streams before the next block.
    """

    folder: Path
    identity: dict[str, Any]
    done: list[Done] = field(default_factory=list)
    states: Mapping[str, Seal] = field(default_factory=dict)

    @classmethod
    def opened(cls, folder: Path, identity: dict[str, Any]) -> Journal:
        """Return the journal in a folder, or a new one.

        Raises:
            FileError: it, or a file that it names, is damaged.
            ConfigError: it is of another run.
        """
        identity = json.loads(json.dumps(identity))
        path = folder / NAME
        if not path.is_file():
            return cls(folder, identity)
        said = unsigned(read_text(path), path)
        if other := [k for k in identity if said["identity"].get(k) != identity[k]]:
            raise ConfigError(
                f"{folder} is of another run, with other {', '.join(other)}: repeat that one to "
                "finish it, or remove the folder, or give another place to write to"
            )
        done = [_done(each) for each in said["done"]]
        found = cls(folder, identity, done, _seals(said["states"]))
        for each in done:
            for name, seal in each.weights.items():
                with sealed(folder, name, seal):
                    pass
        return found

    def write(self) -> None:
        """Replace the file, in one step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        said = {
            "schema": SCHEMA,
            "identity": self.identity,
            "done": [{**asdict(each), "plan": each.plan.to_json()} for each in self.done],
            "states": {name: asdict(seal) for name, seal in self.states.items()},
        }
        write_text(self.folder / NAME, signed(json.loads(json.dumps(said))))


def _done(said: Mapping[str, Any]) -> Done:
    verification, repair = said["verification"], said["repair"]
    shown = ("tried", "refused")
    if verification is not None:
        more = {name: tuple(verification[name]) for name in shown}
        verification = Verification(**{**verification, **more})
    if repair is not None:
        parts = {name: Distance(**repair[name]) for name in ("before", "after")}
        refits = tuple(Refit(**each) for each in repair["refits"])
        repair = Repair(**{**repair, **parts, "refits": refits, "notes": tuple(repair["notes"])})
    shapes = {name: tuple(shape) for name, shape in said["shapes"].items()}
    plan, notes = Plan.from_json(said["plan"]), tuple(said["notes"])
    return Done(said["path"], plan, shapes, verification, repair, _seals(said["weights"]), notes)


def _seals(said: Mapping[str, Any]) -> dict[str, Seal]:
    return {name: Seal(**seal) for name, seal in said.items()}
