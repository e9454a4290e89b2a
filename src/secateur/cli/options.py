"""What several commands share: how a model is named, and options read from a typed config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

from cyclopts import Parameter
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .build import KINDS

F = TypeVar("F", bound=Callable[..., Any])

Model: TypeAlias = Annotated[str, Parameter(help=KINDS)]
Arguments: TypeAlias = Annotated[
    list[str] | None,
    Parameter(name="--arg", negative=(), help="key=value for the callable; repeat it for more"),
]
Weights: TypeAlias = Annotated[
    Path | None, Parameter(help="a .safetensors file with the weights of the model")
]
Inputs: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--input",
        negative=(),
        help="example inputs: 1,3,224,224 (floats), 1,16:1000 (whole numbers below 1000), "
        "input_ids=1,16:1000 (by name), or module:function; known for libraries and folders",
    ),
]
Trust: TypeAlias = Annotated[
    bool,
    Parameter(
        negative=(),
        help="run the code that a saved folder's record.json names; only for folders of people "
        "whose code you would run",
    ),
]
Dense: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="how the dense model of a saved folder is built, where the folder does not say it: "
        "any MODEL, with --arg",
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Given:
    """The options around MODEL: how it is built, and on what it is run."""

    arg: Arguments = None
    weights: Weights = None
    input: Inputs = None
    trust: Trust = False
    dense: Dense = None


NOTHING = Given()


@Parameter(name="*")
@dataclass(frozen=True)
class Calibration:
    """What is known from data: inputs for the model, and what is made of them.

    Parameters
    ----------
    data
        Calibration inputs: module:function or file.py:function that returns batches, or a file:
        .npz or .safetensors (a sample is a row of each array), .txt or .jsonl (MODEL has a
        tokenizer; of JSON lines the field "text" is read, or that of texts.jsonl:field).
    batch_size
        Samples of a batch that is made from a file. By default 8, or fewer where that leaves
        fewer than 8 batches: one of four judges a repair.
    loss
        module:function of (model, batch) that returns a loss. By default model(**batch).loss for
        dicts, and the cross entropy of model(inputs) for (inputs, labels).
    repair
        How what stays makes up for what goes: least_squares, bias, sparse or none. By default
        least_squares, where --data gives inputs without labels and nothing is trained.
    """

    data: str | None = None
    batch_size: int | None = None
    loss: str | None = None
    repair: str | None = None


UNKNOWN = Calibration()


def with_settings(config: type[BaseModel], *, without: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Give a command one option for each field of a config, where it has ``**settings``.

    Types, help and choices are the field's own; what is not typed is not passed, so that
    defaults stay where they are defined.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _typed_word(field.annotation) | None,
                    Parameter(
                        help=_help(field), negative=(), group="Config", consume_multiple=True
                    ),
                ],
            )
            for name, field in config.model_fields.items()
            if name not in without and name not in signature.parameters
        ]
        function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        return function

    return decorate


def _typed_word(annotation: Any) -> Any:
    """Return the type that words are read as.

    >>> _typed_word(tuple[str, ...]), _typed_word(str | tuple[int, ...]), _typed_word(float | None)
    (list[str], <class 'str'>, <class 'float'>)
    """
    arguments = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is dict:
        return list[str]  # key=value, as --arg
    if get_origin(annotation) is tuple:
        return list[arguments[0]]  # type: ignore[valid-type]
    if str in arguments:
        return str
    if get_origin(annotation) is Annotated or len(arguments) == 1:
        return _typed_word(arguments[0])
    return annotation


def _help(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, (), {}) else f" (default {default})"
    return f"{field.description or ''}{shown}".strip()
