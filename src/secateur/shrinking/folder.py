"""What a saved folder holds, read as one: the plan, and the tensors that it goes with."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from secateur.errors import FileError
from secateur.runtime.io import BOUND, opened, read_tensors, read_text, read_text_of
from secateur.runtime.together import sealed

from .document import PLAN, Document, bound_to, understood

WEIGHTS, BUFFERS = "model.safetensors", "buffers.safetensors"
INDEX = "model.safetensors.index.json"
MOST_TRIES = 20
"""To read a folder that somebody writes meanwhile; each fails only if one more save is done."""


def is_weights(name: str) -> bool:
    """Tell whether a file of a folder holds weights, all of them or some."""
    return re.fullmatch(r"model.*\.safetensors", name) is not None


def weights_of(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights, where no plan says it.

    A model in one file goes before one in several, as everywhere; of several, those that their
    index names, where there is one.
    """
    if (one := folder / WEIGHTS).is_file():
        return [one]
    found = sorted(path for path in folder.glob("model*.safetensors") if path.is_file())
    try:
        named = set(json.loads(read_text(folder / INDEX))["weight_map"].values())
    except (FileError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return found
    return [path for path in found if path.name in named] or found


@dataclass(frozen=True)
class Saved:
    """What a folder holds; ``wrong`` says which of its files are not those that were saved."""

    document: Document
    tensors: dict[str, Tensor]
    wrong: list[str]


def read_folder(folder: Path, *, verify_digests: bool = True) -> Saved:
    """Return the plan of a folder and all tensors, of one save also where another is being made.

    Raises:
        FileError: there is no plan that can be read, or no file with weights.
    """
    for _ in range(MOST_TRIES):
        with opened(folder / PLAN) as (head, _):
            text = read_text(folder / PLAN)
            document = understood(text, folder / PLAN, verify=verify_digests)
            bound = bound_to(text) if verify_digests else None
            for _ in range(len(document.seals) + 1):  # each file may get its name meanwhile, once
                saved = Saved(document, *_tensors(folder, document, bound))
                if not _is_still(head, folder / PLAN):
                    break
                if not saved.wrong:
                    return saved
            else:
                return saved
    raise FileError(f"{folder} is being written all the time: it was never the same for one read")


def _is_still(head: BinaryIO, plan: Path) -> bool:
    """Tell whether a plan that was opened is the one of its folder; no other has its inode yet."""
    with opened(plan) as (now, _):
        return os.path.samestat(os.fstat(head.fileno()), os.fstat(now.fileno()))


def _tensors(
    folder: Path, document: Document, bound: str | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of all files, and what is wrong with these.

    Args:
        bound: what those that name their plan say of it; None asks for no digests.
    """
    seals = document.seals
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name in (name for name in seals if is_weights(name) or name == BUFFERS):
        try:
            with sealed(folder, name, seals[name], verify=bound is not None) as path:
                _add(found, path)
                said = read_text_of(path)
            if bound is not None and said.startswith(BOUND) and said != bound:
                wrong.append(f"{name} was saved with a {PLAN} that said something else")
        except FileError as error:
            wrong.append(str(error))
            with suppress(FileError):  # what does not fit, where it can be read, says more
                _add(found, folder / name)
    if not any(map(is_weights, seals)):
        weights = weights_of(folder)
        if not weights:
            raise FileError(f"{folder} holds no {WEIGHTS}")
        old = [folder / BUFFERS] if not seals else []
        for path in (*weights, *filter(Path.is_file, old)):
            _add(found, path)
    return found, wrong


def _add(found: dict[str, Tensor], path: Path) -> None:
    for name, tensor in read_tensors(path).items():
        if found.setdefault(name, tensor) is not tensor:
            raise FileError(f"{name!r} is in two files of {path.parent}, one of them {path.name}")


def same(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors have the same type, shape and numbers; NaN is NaN."""
    if a.dtype != b.dtype or a.shape != b.shape or b.is_meta:
        return False
    b = b.detach().to(a.device).contiguous()
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.view(-1).view(torch.uint8))
