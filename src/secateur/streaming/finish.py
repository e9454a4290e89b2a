"""From finished blocks to a folder that loads: plan, config, shards, and a look at what loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from secateur.errors import ShrinkError, VerificationError
from secateur.repair import Repair
from secateur.runtime.io import write_tensors, write_text
from secateur.selection.goals import missed
from secateur.shrinking import Plan, Result, Verification
from secateur.shrinking.apply import cut_and_verify
from secateur.shrinking.cut import Surgery
from secateur.shrinking.files import save_with
from secateur.shrinking.record import RECORD, Source, record_of, words_of
from secateur.shrinking.stock import write_beside, write_dense_config
from secateur.structure import Structure
from secateur.types import Example

from .asked import Asked
from .block import EXAMPLE, hand_on
from .calls import calls_of, read_before
from .chain import Chain
from .checkpoint import INDEX, Checkpoint, built, named_in
from .journal import Done, Journal
from .states import CUT, DENSE, Given, States
from .weights import Weights

BLOCKS = "blocks.json"
"""Of each block: what stays, how far the smaller one is from the masked one and from the dense."""
SHARD = 1 << 26
"""Bytes of tensors that lie in no block, from which on a new file is begun."""


def finished(
    weights: Weights,
    chain: Chain,
    structure: Structure,
    wanted: Asked,
    journal: Journal,
    example: Example,
    out: Path,
    check: Callable[[Result], object] | None = None,
) -> Result:
    """Write the smaller model and return the result, whose model has no weights.

    Raises:
        ShrinkError: the blocks' shapes are not those that the plan makes of the model.
        VerificationError: what was written, loaded by its class, computes something else.
    """
    model, done = weights.model, journal.done
    dtype = next(p.dtype for p in model.parameters())
    plan = Plan({name: kept for each in done for name, kept in each.plan.keep.items()})
    notes = [*wanted.notes, *_notes(done)]
    result = cut_and_verify(model, structure, plan, {}, example, notes=notes, verify=False)
    _check_shapes(result, done)
    stock = result.ordinary
    surgery = Surgery(model)
    if result.config is not None:
        surgery.configure(result.config)
    result.rebuilt = stock and result.config is not None
    result.verification = _together(done)
    result.with_repair(_repairs(done))
    _tell_goals(result, wanted)
    if check is not None:
        check(result)
    files = _Files(weights, chain, journal)
    source = Source(str(weights.checkpoint.folder.resolve()), input=words_of(example))

    def beside(folder: Path) -> None:
        files.write(folder)
        write_text(folder / BLOCKS, json.dumps([_told(each) for each in done], indent=1) + "\n")
        write_text(folder / RECORD, record_of(source))
        if stock and _write_config(model, folder):
            _try(model, chain, folder, example, dtype, journal, structure)
        else:
            surgery.undo()  # of the config
            write_dense_config(model, folder)
            result.refused = stock
        write_beside(model, folder)

    save_with(model, out, weights=False, beside=beside)
    return result


def _tell_goals(result: Result, wanted: Asked) -> None:
    """Let a result say what was asked for and reached, and first of all what was not."""
    if result.plan.keep:
        result.goals = wanted.budget.reached(result.plan.counts, result.model)
    if short := wanted.budget.unmet or missed(result.goals):
        result.warnings.insert(0, short)


def _check_shapes(result: Result, done: list[Done]) -> None:
    now = {name: tuple(tensor.shape) for name, tensor in result.model.state_dict().items()}
    for each in done:
        for name, shape in each.shapes.items():
            if now.get(name) != shape:
                raise ShrinkError(
                    f"{name!r} was cut to {shape} in its block, and the plan makes {now.get(name)} "
                    "of it in the whole model"
                )


def _notes(done: list[Done]) -> Iterator[str]:
    """Yield what blocks have to say, each thing once."""
    said: dict[str, list[str]] = {}
    for each in done:
        for note in each.notes:
            said.setdefault(note.replace(each.path, "#"), []).append(each.path)
    for note, paths in said.items():
        more = f" (and {len(paths) - 1} more blocks)" if len(paths) > 1 else ""
        yield f"{note.replace('#', paths[0])}{more}"


def _together(done: list[Done]) -> Verification | None:
    """Return the verification of the block that is farthest from its masked form."""
    seen = {each.path: each.verification for each in done if each.verification is not None}
    if not seen:
        return None
    path = max(seen, key=lambda name: (not seen[name].passed, seen[name].difference))
    worst = seen[path]
    return Verification(
        worst.difference,
        worst.tolerance,
        all(each.exact for each in seen.values()),
        sum(each.inputs for each in seen.values()),
        f"{worst.precision}, block by block ({len(seen)}; {path} is farthest)",
        worst.tried,
        worst.refused,
        worst.worst,
    )


def _told(done: Done) -> dict[str, Any]:
    """Return the figures of a block: exactness, and quality on held-out batches."""
    exact, repair = done.verification, done.repair
    return {
        "block": done.path,
        "keeps": done.plan.counts,
        "masked == smaller": exact
        and {"difference": exact.difference, "tolerance": exact.tolerance, "exact": exact.exact},
        "error of the stream": repair
        and {"before repair": repair.before.error, "after": repair.after.error},
    }


def _repairs(done: list[Done]) -> Repair | None:
    """Return one record of all blocks' repairs; the distances are those behind the last block."""
    found = [each.repair for each in done if each.repair is not None]
    if not found:
        return None
    notes = ("repair: errors are of the stream behind the last block that was pruned",)
    refits = tuple(refit for each in found for refit in each.refits)
    return Repair(found[-1].how, refits, found[-1].before, found[-1].after, False, notes)


class _Files:
    """The shards of the smaller model."""

    def __init__(self, weights: Weights, chain: Chain, journal: Journal):
        self.checkpoint, self.names, self.journal = weights.checkpoint, weights.names, journal
        self.outside = [n for n in self.checkpoint.files if chain.owner(n) is None]

    def write(self, folder: Path) -> None:
        """Write all shards and the index; a block's is the file that it waits in."""
        blocks = [name for each in self.journal.done for name in each.weights]
        groups = list(self._groups())
        total = len(blocks) + len(groups)
        where: dict[str, str] = {}
        size = 0
        for number, block in enumerate(blocks):
            file = _shard(number, total)
            _linked(self.journal.folder / block, folder / file)
            where |= dict.fromkeys(self.journal.done[number].shapes, file)
        for number, names in enumerate(groups, len(blocks)):
            file = _shard(number, total)
            write_tensors(folder / file, self.checkpoint.read(names))
            where |= dict.fromkeys(names, file)
        size = sum((folder / file).stat().st_size for file in set(where.values()))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")

    def _groups(self) -> Iterator[list[str]]:
        """Yield the tensors that lie in no block, a file's each."""
        names, size = list[str](), 0
        for name in self.outside:
            names.append(name)
            size += self.checkpoint.read([name])[name].nbytes
            if size >= SHARD:
                yield names
                names, size = [], 0
        if names:
            yield names


def _shard(number: int, total: int) -> str:
    return f"model-{number + 1:05d}-of-{total:05d}.safetensors"


def _linked(path: Path, new: Path) -> None:
    """Let a file have a second name; where there is no such thing, copy it."""
    try:
        os.link(path, new)
    except OSError:
        shutil.copyfile(path, new)


def _write_config(model: Any, folder: Path) -> bool:
    """Write the config that says the new sizes; False where transformers refuses such a one."""
    try:
        model.config.save_pretrained(folder)
    except OSError:  # a full disk says nothing of the config
        raise
    except Exception:  # a config's validators may raise anything
        return False
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    return True


def _try(
    model: Any,
    chain: Chain,
    folder: Path,
    example: Example,
    dtype: torch.dtype,
    journal: Journal,
    structure: Structure,
) -> None:
    """Build the class by the written config, run its blocks on the written weights, compare."""
    new = built(type(model), model.config, dtype)
    checkpoint = Checkpoint.of(folder)
    weights = Weights(new, checkpoint, named_in(new, checkpoint))
    states = States(folder / "tried")
    with weights.held(read_before(structure.inferred.recording, chain)):
        calls = calls_of(new, chain, example)
    states.write(DENSE, 0, EXAMPLE, calls.stream)
    for place, path in enumerate(chain.paths):
        block = weights.block(path, chain)
        rests, tokens = {EXAMPLE: calls.rests[place]}, {EXAMPLE: calls.tokens}
        hand_on(block, Given(states, DENSE, place, [EXAMPLE], rests, tokens), DENSE)
    last = len(chain.paths)
    found = states.read(DENSE, last, EXAMPLE)
    expected = States(journal.folder / "states").read(CUT, last, EXAMPLE)
    shutil.rmtree(states.folder)
    if not torch.equal(found, expected):
        raise VerificationError(
            f"{type(model).__name__}, built by the config that says the new sizes, computes "
            "something else than the blocks that were cut"
        )
