"""Folders of models of transformers: what its own loader reads, what ours reads, what goes along.

Where the class's own config says every shape, the folder is an ordinary one.  Elsewhere it holds
the dense model's config, by which ``from_pretrained`` builds a skeleton for the plan to shape.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import FileError
from secateur.runtime.configs import without_code
from secateur.runtime.extras import library
from secateur.runtime.forward import random_kept
from secateur.runtime.io import read_text, write_text
from secateur.runtime.together import Seal, sealed

from .configured import is_config
from .document import PLAN, seals_in
from .expressed import is_large
from .files import load_pruned
from .folder import same
from .history import History

CONFIG, DENSE = "config.json", "dense_config.json"
FLOAT = "__float__"
BESIDE = (".json", ".jinja", ".model", ".txt", ".tiktoken")
"""Endings of what lies beside the weights of a model and goes with it: tokenizers, templates."""
MOST_BESIDE = 2**26
"""Bytes of such a file."""
OURS = ("plan.json", "record.json", "report.json", DENSE)


def is_pretrained(model: nn.Module) -> bool:
    """Tell whether a model is saved by ``save_pretrained``, and loaded by its class."""
    known = hasattr(model, "save_pretrained") and hasattr(type(model), "from_pretrained")
    return known and is_config(getattr(model, "config", None))


def is_stock(model: nn.Module) -> bool:
    """Tell whether a model's class is one that transformers itself has under its name."""
    if not is_pretrained(model) or not type(model).__module__.startswith("transformers."):
        return False
    transformers = library("transformers", "transformers", "a model of transformers", "hf")
    return getattr(transformers, type(model).__name__, None) is type(model)


def write_ordinary(model: Any, folder: Path, config: Any) -> bool:
    """Write what ``from_pretrained`` of the model's class reads, if it then gives this model.

    It is tried: the files are loaded, and must hold the same tensors.  A model of more than 2 GiB
    is not loaded again.

    Args:
        config: that the class is to build it from.
    """
    before = {path.name for path in folder.iterdir()}
    if _written(model, folder, config) and (is_large(model) or _loads(model, folder)):
        return True
    for path in folder.iterdir():
        if path.name not in before:
            path.unlink()
    return False


def _written(model: Any, folder: Path, config: Any) -> bool:
    """Write a model as its class does; False where the class refuses the config, or the model."""
    own = model.config
    try:
        model.config = config
        model.save_pretrained(folder)
    except OSError:  # a full disk says nothing of the class
        raise
    except Exception:  # a config's validators may raise anything
        return False
    finally:
        model.config = own
    return True


def _loads(model: Any, folder: Path) -> bool:
    wanted = model.state_dict()
    try:
        with random_kept():
            found = type(model).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=model.dtype
            )
    except Exception:  # a class may refuse anything; then its loader is none for this model
        return False
    state = found.state_dict()
    if state.keys() != wanted.keys():
        return False
    return all(same(state[name], tensor) for name, tensor in wanted.items())


def write_dense_config(model: Any, folder: Path) -> None:
    """Write the dense model's config, and how the model writes text."""
    config = copy.deepcopy(model.config)
    for name, (before, _) in History.of(model).attributes.items():
        if name.startswith("config."):
            _put(config, name.removeprefix("config."), before)
    config.architectures, config.dtype = [type(model).__name__], model.dtype
    told = json.loads(config.to_json_string(use_diff=False))
    write_text(folder / DENSE, json.dumps(told, indent=1) + "\n")
    if (generation := getattr(model, "generation_config", None)) is not None:
        with suppress(ValueError):  # one that transformers would not read again
            generation.save_pretrained(folder)


def _put(config: Any, name: str, value: Any) -> None:
    """Give a config, or one inside it, a number that it had; None: it had none."""
    *path, last = name.split(".")
    for part in path:
        config = getattr(config, part)
    if value is None and last not in inspect.signature(type(config)).parameters:
        delattr(config, last)
    else:
        setattr(config, last, [*value] if isinstance(value, tuple) else value)


def write_beside(model: Any, folder: Path) -> None:
    """Copy what lies beside the weights that a model was loaded from: tokenizer, chat template."""
    place = getattr(model.config, "_name_or_path", "") or ""
    source = Path(place)
    if not place or not source.is_dir():
        return
    for path in sorted(source.iterdir()):
        fits = path.suffix in BESIDE and path.is_file() and path.stat().st_size <= MOST_BESIDE
        known = path.name in (*OURS, CONFIG) or path.name.endswith(".index.json")
        if fits and not known and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def holds_stock(folder: Path) -> bool:
    """Tell whether a folder is one that ``from_pretrained`` loads: its class is transformers'."""
    name = next((n for n in (CONFIG, DENSE) if n in seals_in(folder / PLAN)), None)
    if name is None:
        return False
    try:
        _class_of(read_text(folder / name), folder / name)
    except FileError:  # a class of the user's, which its own record names
        return False
    return True


def from_pretrained(directory: str | os.PathLike[str], *, verify_digests: bool = True) -> nn.Module:
    """Load a pruned model of transformers, in eval mode, without building the dense one first.

    A folder whose ``config.json`` says every shape is loaded by the class's own
    ``from_pretrained``.  Elsewhere a skeleton without memory is built from ``dense_config.json``,
    and the plan gives it its shapes and weights.  Code of the folder is never run.

    Args:
        directory: what ``Result.save`` or ``secateur prune`` wrote.
        verify_digests: as for ``load_pruned``.

    Raises:
        FileError: there is no such folder, a file is damaged, or it holds a model of another kind,
            which ``load_pruned`` loads onto a dense one.
        MissingExtraError: transformers is not installed.

    >>> from secateur import prune
    >>> from tempfile import TemporaryDirectory
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> with TemporaryDirectory() as folder:
    ...     _ = prune(net, torch.zeros(1, 8), sparsity=0.5).save(folder)
    ...     from_pretrained(folder)
    Traceback (most recent call last):
    secateur.errors.FileError: ... holds no model of transformers: use secateur.load_pruned(...

    See also:
        ``load_pruned``, for every other model.
    """
    folder = Path(directory)
    seals = seals_in(folder / PLAN)
    if CONFIG in seals:
        return _ordinary(folder, seals, verify_digests)
    if DENSE in seals:
        with sealed(folder, DENSE, seals[DENSE], verify=verify_digests) as path:
            text = read_text(path)
        return load_pruned(folder, _skeleton(text, folder), verify_digests=verify_digests).eval()
    raise FileError(
        f"{folder} holds no model of transformers: use secateur.load_pruned(folder, model), with a "
        "freshly built dense model"
        if seals
        else f"{folder} holds no {PLAN} of secateur"
    )


def _ordinary(folder: Path, seals: dict[str, Seal], verify: bool) -> nn.Module:
    with ExitStack() as stack:
        for name, seal in seals.items():
            stack.enter_context(sealed(folder, name, seal, verify=verify))
        told = read_text(folder / CONFIG)
        kind, config = _class_of(told, folder / CONFIG), _config(told, folder / CONFIG)
        model: nn.Module = kind.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True
        )
    return model.eval()


def _config(text: str, path: Path) -> Any:
    """Return the config that a file describes, without what of it names code to fetch.

    Raises:
        FileError: it describes none.
    """
    transformers = library("transformers", "transformers", f"loading {path.parent}", "hf")
    try:
        told = json.loads(text, object_hook=_number)
        return transformers.AutoConfig.for_model(**without_code(told))
    except Exception as wrong:  # a class may refuse anything that a damaged config says
        raise FileError(f"{path} describes no model: {wrong}") from wrong


def _number(told: dict[str, Any]) -> Any:
    """Return the number that JSON has no word for, as transformers writes it; else what is told."""
    word = str(told.get(FLOAT)) if [*told] == [FLOAT] else ""
    return float(word) if word in ("Infinity", "-Infinity", "NaN") else told


def _class_of(text: str, path: Path) -> Any:
    """Return the class of transformers that a config names."""
    transformers = library("transformers", "transformers", f"loading {path.parent}", "hf")
    try:
        (name, *_) = json.loads(text)["architectures"]
    except (ValueError, LookupError, TypeError, RecursionError):
        name = ""
    kind = getattr(transformers, name, None) if isinstance(name, str) and name else None
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise FileError(f"{path} names no model of transformers in its architectures")
    return kind


def _skeleton(text: str, folder: Path) -> nn.Module:
    """Return the dense model that a config describes, on ``torch.device("meta")``."""
    kind = _class_of(text, folder / DENSE)
    config = _config(text, folder / DENSE)
    transformers = library("transformers", "transformers", f"loading {folder}", "hf")
    try:
        with torch.device("meta"):
            model: nn.Module = kind._from_config(config, dtype=config.dtype)
    except Exception as wrong:  # a class may refuse anything that a damaged config says
        raise FileError(f"{folder / DENSE} describes no model: {wrong}") from wrong
    if (folder / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model
