"""``prune_checkpoint``: a model in files becomes smaller, block by block, never in memory whole.

It is analysed without its weights.  Memory holds the embeddings while what blocks are given is
found, then one block and its copies, one batch and the moments of one layer; streams between blocks
are files.  No call that is undone as one spans several blocks, as what would put them back is kept.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import disk_usage, rmtree
from typing import Any

from torch import nn

from secateur.config import Config
from secateur.errors import ConfigError, WriteError
from secateur.one_shot import one_shot_config, repair_wanted
from secateur.runtime.batches import held
from secateur.runtime.digests import digest_of
from secateur.runtime.io import write_tensors
from secateur.runtime.progress import shown
from secateur.runtime.release import release
from secateur.runtime.scratch import alone_in
from secateur.runtime.together import seal_of
from secateur.scoring.criteria import criteria
from secateur.shrinking import Result
from secateur.structure import Structure, analyze
from secateur.types import Example

from .alone import Rest
from .asked import Asked, asked, completed
from .block import EXAMPLE, Inputs, prune_block, tensors_of
from .calls import calls_of, check_apart, read_before
from .chain import Chain, chain_of
from .checkpoint import Checkpoint, named_in, on_meta
from .finish import finished
from .journal import Done, Journal
from .options import Options
from .states import CUT, DENSE, PRUNED, Given, States
from .weights import Weights

WORK = ".streaming"
"""The folder, in the one that is written to, that holds what is not finished."""


def prune_checkpoint(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str],
    example_inputs: Example,
    sparsity: float | None = None,
    *,
    data: Iterable[Any] | None = None,
    config: Config | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Result:
    """Prune a Hugging Face folder into another one, in less memory than the model needs.

    Each block is read, decided on, repaired, cut, compared with what it was when masked, and
    written.  A run that was killed goes on at its block when it is called again.  What stays is bit
    for bit what ``prune(model, …, what=["width", "heads"])`` keeps in memory.  Scores that are
    ranked across blocks, and groups that several read (the hidden size), are refused.

    Args:
        directory: with ``config.json`` and safetensors.
        out: where the smaller model goes, with ``plan.json``, and what an ordinary loader reads,
            where that can be said.
        example_inputs: as for ``analyze``, of the whole model.
        sparsity: the share to remove.
        data: batches of inputs, as for ``prune``.
        config: all settings at once, instead of single ones.
        settings: fields of ``Config``, and of ``secateur.streaming.Options``.

    Returns:
        The result; its ``model`` has the new shapes, and no weights: these are in ``out``.

    Raises:
        ConfigError, ModelError, FileError, VerificationError: nothing that was in ``out`` changed.

    >>> prune_checkpoint("nowhere", "small", {}, 0.5)
    Traceback (most recent call last):
        ...
    secateur.errors.FileError: nowhere is no Hugging Face folder: it holds no config.json

    See also:
        ``prune``, in memory; ``load_pruned``, where no ordinary loader reads the outcome.
    """
    options, given = Options.taken(settings)
    given |= {} if sparsity is None else {"sparsity": sparsity}
    chosen = completed(one_shot_config(config, given))
    return _pruned(Path(directory), Path(out), example_inputs, data, chosen, options)


def _pruned(
    source: Path, out: Path, example: Example, data: Any, config: Config, options: Options
) -> Result:
    if out.resolve() == source.resolve():
        raise ConfigError(f"{out}: write the smaller model elsewhere than over the dense one")
    how = repair_wanted(options.repair, data, None)
    checkpoint = Checkpoint.of(source)
    model, _ = on_meta(source)
    batches = [] if data is None else [without_cache(model, batch) for batch in held(data)]
    example = without_cache(model, example)
    weights = Weights(model, checkpoint, named_in(model, checkpoint))
    structure = analyze(model, example)
    chain = chain_of(model, structure)
    wanted = asked(model, structure, chain, config, example)
    _check_data(wanted, batches)
    run = Run(weights, chain, structure, wanted, config, how, out / WORK, options)
    run.work.mkdir(parents=True, exist_ok=True)
    with alone_in(run.work):
        journal = run.through(example, batches)
        result = finished(weights, chain, structure, wanted, journal, example, out, options.check)
        rmtree(run.work)
    return result


def without_cache(model: nn.Module, batch: Any) -> Any:
    """Return a batch of keyword arguments that asks a model to keep no cache, if it might."""
    config = getattr(model, "config", None)
    if isinstance(batch, Mapping) and hasattr(config, "use_cache"):
        return {"use_cache": False, **batch}
    return batch


def _check_data(wanted: Asked, batches: Sequence[Any]) -> None:
    """Raise a ConfigError where a criterion needs what nobody gives."""
    every = [each for some in wanted.by_block.values() for each in some]
    for name in dict.fromkeys(each.criterion for each in every):
        if criteria.asks(name, "backward"):
            raise ConfigError(f"streaming: criterion {name!r} needs gradients of the whole model")
        if criteria.asks(name, "forward") and not batches:
            raise ConfigError(f"criterion {name!r} needs data=…, batches of inputs")


@dataclass(frozen=True)
class Run:
    """All that does not change while blocks pass."""

    weights: Weights
    chain: Chain
    structure: Structure
    wanted: Asked
    config: Config
    how: str | None
    work: Path
    options: Options

    @cached_property
    def states(self) -> States:
        return States(self.work / "states")

    def through(self, example: Any, batches: Sequence[Any]) -> Journal:
        """Prune all blocks that are not pruned yet; return the journal of all."""
        journal = Journal.opened(self.work, self._identity(example, batches))
        left = self.chain.paths[len(journal.done) :]
        if not left:
            return journal
        named = {EXAMPLE: example, **{str(i): batch for i, batch in enumerate(batches)}}
        rests, tokens = self._given(named, write=not journal.done)
        self.states.check(journal.states)
        for place, path in enumerate(shown(left, "pruning blocks", left=True), len(journal.done)):
            self.states.keep(place)
            some = {name: rests[name][place] for name in named}
            done = self._one(place, path, some, tokens)
            journal.done.append(done)
            journal.states = self.states.seals(place + 1)
            journal.write()
        return journal

    def _identity(self, example: Any, batches: Sequence[Any]) -> dict[str, Any]:
        return {
            "checkpoint": self.weights.checkpoint.identity(),
            "settings": self.config.model_dump(mode="json"),
            "repair": self.how,
            "verify": self.options.verify,
            "example": digest_of(example),
            "data": digest_of(list(batches)),
        }

    def _given(
        self, named: Mapping[str, Any], *, write: bool
    ) -> tuple[dict[str, tuple[Rest, ...]], dict[str, Any]]:
        """Return what blocks are given beside the stream; write the streams before the first."""
        model, rests, tokens = self.weights.model, dict[str, tuple[Rest, ...]](), dict[str, Any]()
        with self.weights.held(read_before(self.structure.inferred.recording, self.chain)):
            check_apart(model, self.chain, named[EXAMPLE])
            for name, batch in named.items():
                calls = calls_of(model, self.chain, batch)
                rests[name], tokens[name] = calls.rests, calls.tokens
                if write:
                    self._check_room(calls.stream.nbytes * len(named))
                    kinds = (DENSE, CUT) if name == EXAMPLE else (DENSE, PRUNED)
                    for kind in kinds:
                        self.states.write(kind, 0, name, calls.stream)
        return rests, tokens

    def _check_room(self, stream: int) -> None:
        """Raise a WriteError where the disk has no room for the outcome and for four streams."""
        needed, free = self.weights.checkpoint.bytes + 4 * stream, disk_usage(self.work).free
        if free < needed:
            raise WriteError(
                f"{self.work} is on a disk with {free / 1e9:.1f} GB free, and up to "
                f"{needed / 1e9:.1f} GB are written: give another place, or fewer batches"
            )

    def _one(
        self, place: int, path: str, rests: Mapping[str, Rest], tokens: Mapping[str, Any]
    ) -> Done:
        """Prune one block, and write it."""
        batches = [name for name in rests if name != EXAMPLE]

        def given(kind: str, names: Sequence[str]) -> Given:
            return Given(self.states, kind, place, names, rests, tokens)

        inputs = Inputs(
            given(DENSE, [EXAMPLE]),
            given(CUT, [EXAMPLE]),
            given(DENSE, batches),
            given(PRUNED, batches),
        )
        gc.collect()  # the block before it may hang in a cycle
        release()
        block = self.weights.block(path, self.chain, self.options.device)
        wanted = self.wanted.by_block[path]
        how = self.how if wanted else None
        made = prune_block(block, inputs, wanted, self.config, how, verify=self.options.verify)
        tensors, file = tensors_of(block), self.work / f"block-{place:05d}.safetensors"
        write_tensors(file, tensors)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        weights = {file.name: seal_of(file)}
        return Done(path, made.plan, shapes, made.verification, made.repair, weights, made.notes)
