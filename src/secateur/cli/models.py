"""What MODEL means on the command line: from a few words to a module and example inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import isdir, isfile  # which answer for every text
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from secateur.errors import ConfigError, FileError, did_you_mean
from secateur.runtime.io import read_tensors, read_text
from secateur.runtime.together import place_of, sealed
from secateur.shrinking import from_pretrained, load_pruned
from secateur.shrinking.document import PLAN, read, seals_in
from secateur.shrinking.files import add_beside
from secateur.shrinking.record import RECORD, SCHEMA, Source, record_of
from secateur.shrinking.stock import holds_stock
from secateur.types import Example

from .build import build
from .inputs import read_inputs, tokens_or_image
from .options import NOTHING, Given
from .trust import check_plain


@dataclass(frozen=True)
class _Record:
    """What is read of a record; the figures beside it are nobody's business here."""

    source: Source
    schema: int = 1


_RECORD = TypeAdapter(_Record)


@dataclass
class Loaded:
    """A model in eval mode, example inputs, and how the dense model came about."""

    model: nn.Module
    example: Example
    source: Source

    @property
    def name(self) -> str:
        return type(self.model).__name__


def load(model: str, given: Given = NOTHING, dense: Source | None = None) -> Loaded:
    """Return the model that MODEL and the options around it stand for.

    Args:
        model: MODEL.
        given: the options.
        dense: how to build the dense model of a folder whose own record asks for code.

    Raises:
        ConfigError: MODEL, an argument, the weights or the inputs are not what they should be; or a
            folder asks for code to be run.
        FileError: a file cannot be read.
        MissingExtraError: it needs a library that is not installed.
    """
    folder = Path(model)
    if isfile(folder / RECORD) or isfile(folder / PLAN):
        if given.weights or (given.arg and not given.dense):
            raise ConfigError(f"{folder}: a saved model takes neither --arg nor --weights")
        named = _source(given.dense, given) if given.dense else None
        return _saved(folder, given, named, dense)
    if given.dense:
        raise ConfigError(f"--dense {given.dense}: {model} is no folder that secateur wrote")
    return rebuild(_source(model, given))


def _source(model: str, given: Given) -> Source:
    """Return what was typed, so that it means the same from another working directory."""
    return Source(
        str(Path(model).resolve()) if isdir(model) else _resolved(model),
        keywords(given.arg or ()),
        None if given.weights is None else str(given.weights.resolve()),
        tuple(map(_resolved, given.input or ())),
    )


def _resolved(place: str) -> str:
    """Return a place that still means the same from another working directory."""
    where, colon, name = place.rpartition(":")
    return f"{Path(where).resolve()}:{name}" if colon and where.endswith(".py") else place


def rebuild(source: Source) -> Loaded:
    """Return the dense model of a source, with its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the weights of a model that comes without any
        model, example = build(source.model, source.arguments)
    if source.weights is not None:
        load_weights(model, Path(source.weights))
    if source.input:
        example = read_inputs(source.input)
    if example is None:
        raise ConfigError(
            f"{source.model}: give example inputs, such as --input 1,3,224,224, "
            "--input input_ids=1,16:1000 or --input module:function"
        )
    return Loaded(model.eval(), example, source)


def keywords(words: Sequence[str]) -> dict[str, Any]:
    """Return ``key=value`` words as keyword arguments; a value is JSON where it can be.

    >>> keywords(["num_classes=10", "name=tiny", "bias=false"])
    {'num_classes': 10, 'name': 'tiny', 'bias': False}
    """
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--arg {word!r}: write key=value")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def shares(words: Sequence[str]) -> dict[str, Any]:
    """Return ``name=share`` words, in which names are those of groups, or patterns.

    >>> shares(["layer1.*=0.5", "fc=0"])
    {'layer1.*': 0.5, 'fc': 0.0}
    """
    found: dict[str, Any] = {}
    for word in words:
        name, _, value = word.rpartition("=")
        try:
            found[name] = float(value)
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"--allocation {word!r}: write name=share, as in 'layer1.*=0.5'")
    return found


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model whose names and shapes it must have."""
    if path.suffix != ".safetensors":
        raise ConfigError(
            f"{path}: weights are read from .safetensors only, because reading other formats can "
            "run code; convert with safetensors.torch.save_file(torch.load(...), 'x.safetensors')"
        )
    state = read_tensors(path)
    own = dict(model.state_dict())
    extra = sorted(state.keys() - own)
    problems = [f"lacks {n!r}.{did_you_mean(n, extra)}" for n in sorted(own.keys() - state)]
    problems += [f"has {n!r}, which the model lacks" for n in extra]
    problems += [
        f"{n!r} is {tuple(state[n].shape)}, the model's {tuple(own[n].shape)}"
        for n in sorted(own.keys() & state)
        if own[n].shape != state[n].shape
    ]
    if problems:
        more = [f"and {len(problems) - 3} more such problems"] if len(problems) > 3 else []
        raise ConfigError(f"{path} {'; '.join([*problems[:3], *more])}")
    model.load_state_dict(state)


def remember(folder: Path, source: Source, **facts: Any) -> None:
    """Write how the dense model of a saved one is built, so that the folder stands for itself."""
    add_beside(folder, RECORD, record_of(source, **facts))


def recalled(folder: Path, *, trust: bool = True) -> Source:
    """Return how the dense model of a saved folder is built, by what the folder says.

    Raises:
        FileError: it does not say so, or, where it is not trusted, in another file than that which
            was saved with the model.
        ConfigError: it is not trusted, and asks for code to be run.
    """
    seal = seals_in(folder / PLAN).get(RECORD)
    path = folder / RECORD if seal is None else place_of(folder, RECORD, seal)
    source = _understood(path, read_text(path))
    if not trust:
        check_plain(path, source.model, source.arguments, source.input)
    if seal is not None and not trust:
        with sealed(folder, RECORD, seal):
            pass
    return source


def _understood(path: Path, text: str) -> Source:
    try:
        record = _RECORD.validate_json(text)
    except ValidationError as error:
        raise FileError(
            f"{path} does not say how the dense model is built; save with `secateur prune`"
        ) from error
    if record.schema > SCHEMA:
        raise FileError(f"{path} has schema {record.schema}, newer than {SCHEMA}: upgrade")
    return record.source


def _saved(folder: Path, given: Given, named: Source | None, other: Source | None) -> Loaded:
    """Return the model of a saved folder.

    Args:
        folder: of it.
        given: the options.
        named: how its dense model is built, as ``--dense`` says.
        other: how that of DENSE is, for a folder that does not say it, or asks for code.
    """
    if named is None and holds_stock(folder):
        return _pretrained(folder, tuple(map(_resolved, given.input or ())))
    source = named or _told(folder, other, trust=given.trust)
    if given.input:
        source = replace(source, input=tuple(given.input))
    elif not source.input and isfile(folder / RECORD):
        source = replace(source, input=_plain_inputs(folder))
    dense = rebuild(source)
    model = load_pruned(folder, dense.model)
    return Loaded(model.eval(), dense.example, dense.source)


def _pretrained(folder: Path, inputs: tuple[str, ...]) -> Loaded:
    """Return a model of transformers, which needs no dense one, of a folder that holds all."""
    model = from_pretrained(folder)
    example = read_inputs(inputs) if inputs else tokens_or_image(model)
    if example is None:
        raise ConfigError(f"{folder}: give example inputs, such as --input input_ids=1,16:1000")
    return Loaded(model, example, Source(str(folder.resolve()), {}, None, inputs))


def _told(folder: Path, other: Source | None, *, trust: bool) -> Source:
    """Return how a folder's dense model is built, by what it says, or else as another one."""
    try:
        source = recalled(folder, trust=trust) if isfile(folder / RECORD) else Source()
    except ConfigError:  # it asks for code to be run
        if other is None:
            raise
        return other
    if source.model:
        return source
    if other is None:
        raise ConfigError(
            f"{folder} does not say how its dense model is built, which was of class "
            f"{read(folder / PLAN).model}: say it with --dense module:callable, or another MODEL"
        )
    return other


def _plain_inputs(folder: Path) -> tuple[str, ...]:
    """Return the words for inputs that a record holds, where they are shapes alone."""
    source = _understood(folder / RECORD, read_text(folder / RECORD))
    try:
        check_plain(folder / RECORD, "", {}, source.input)
    except ConfigError:
        return ()
    return source.input
