"""A folder with a model's config and its weights in safetensors, read tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from secateur.errors import FileError, ModelError, did_you_mean
from secateur.runtime.configs import check_no_code
from secateur.runtime.drawing import keep_generators
from secateur.runtime.extras import library
from secateur.runtime.io import read_text, understood
from secateur.runtime.undo import Undo

CONFIG, ONE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a folder, by name.

    Attributes:
        folder: with ``config.json``, and ``model.safetensors`` or its shards and their index.
        files: tensor → the name of the file that holds it.
    """

    folder: Path
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> Checkpoint:
        """Return the checkpoint in a folder.

        Raises:
            FileError: it holds none, or files of it are missing or damaged.
        """
        if not (folder / CONFIG).is_file():
            raise FileError(f"{folder} is no Hugging Face folder: it holds no {CONFIG}")
        if (folder / ONE).is_file():
            return cls(folder, dict.fromkeys(_names(folder / ONE), ONE))
        if not (folder / INDEX).is_file():
            raise FileError(
                f"{folder} holds neither {ONE} nor {INDEX}: other forms of weights can run code "
                "when they are read, and are not; save it again with save_pretrained"
            )
        try:
            named = json.loads(read_text(folder / INDEX))["weight_map"]
            files = {str(name): str(file) for name, file in named.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(f"{folder / INDEX} is damaged: {error!r}") from error
        for file in sorted(set(files.values())):
            if Path(file).name != file:
                raise FileError(f"{folder / INDEX} names {file!r}, which is not beside it")
            there = set(_names(folder / file))
            if lost := [name for name, at in files.items() if at == file and name not in there]:
                raise FileError(f"{folder / file} lacks {lost[0]!r}, which {INDEX} says is in it")
        return cls(folder, files)

    def read(self, names: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return tensors in memory of their own."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        found: dict[str, Tensor] = {}
        for file, some in by_file.items():
            with understood(self.folder / file), safe_open(self.folder / file, "pt") as shard:
                for name in some:  # what is read looks at the file, which may change
                    found[name] = shard.get_tensor(name).to(device, copy=True)
        return found

    @cached_property
    def bytes(self) -> int:
        """How large the files are, together."""
        return sum((self.folder / file).stat().st_size for file in set(self.files.values()))

    def identity(self) -> dict[str, Any]:
        """Return what tells this checkpoint from another one, or from what becomes of it."""
        seen = {file: (self.folder / file).stat() for file in sorted({*self.files.values()})}
        return {
            "folder": str(self.folder.resolve()),
            "config": json.loads(read_text(self.folder / CONFIG)),
            "files": {file: [each.st_size, each.st_mtime_ns] for file, each in seen.items()},
        }


def _names(path: Path) -> list[str]:
    with understood(path), safe_open(path, "pt") as file:
        return list(file.keys())


def on_meta(folder: Path) -> tuple[nn.Module, Any]:
    """Return the model of a folder with parameters on ``meta``, in eval mode, and its config.

    Its buffers have values: what the class computes for itself, such as frequencies.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: its config names no class that is known.
        FileError: it names code to fetch.
    """
    transformers = library("transformers", "transformers", "a Hugging Face folder", "hf")
    check_no_code(folder / CONFIG)
    config = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    kinds = [getattr(transformers, str(n), None) for n in config.architectures or ()]
    known = [k for k in kinds if isinstance(k, type) and issubclass(k, nn.Module)]
    if not known:
        raise ModelError(
            f"{folder / CONFIG}: 'architectures' names no class of transformers "
            f"({', '.join(map(str, config.architectures or ())) or 'it is empty'})"
        )
    return built(known[0], config, _dtype(folder, config)), config


def built(kind: Any, config: Any, dtype: torch.dtype) -> nn.Module:
    """Return what a class of transformers makes of a config, without weights but with buffers."""
    with Undo() as undo, parameters_on_meta():
        keep_generators(undo, named=False)
        model: nn.Module = kind._from_config(config, dtype=dtype)
    return model.eval()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let parameters of modules that are made have no numbers, and take no memory."""
    plain = nn.Module.register_parameter

    def register(module: nn.Module, name: str, given: nn.Parameter | None) -> None:
        if given is not None and not given.is_meta:  # one that is tied stays the same object
            given = nn.Parameter(given.data.to("meta"), given.requires_grad)
        plain(module, name, given)

    with Undo() as undo:
        undo(lambda: setattr(nn.Module, "register_parameter", plain))
        nn.Module.register_parameter = register  # type: ignore[assignment,method-assign]
        yield


def _dtype(folder: Path, config: Any) -> torch.dtype:
    """Return what transformers loads the weights as: what the config says, else the files."""
    said = getattr(config, "dtype", None)
    if isinstance(said, torch.dtype):
        return said
    checkpoint = Checkpoint.of(folder)
    tensors = (checkpoint.read([name])[name].dtype for name in sorted(checkpoint.files))
    return next((kind for kind in tensors if kind.is_floating_point), torch.float32)


def named_in(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Return for each tensor of a model's state the name that a checkpoint has for it.

    Those that are tied to another have the other's, unless they have their own.

    Raises:
        FileError: it lacks one, or holds others.
    """
    state = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for name, tensor in state.items():
        if name in checkpoint.files:
            first.setdefault(id(tensor), name)
    names = {n: n if n in checkpoint.files else first.get(id(t), "") for n, t in state.items()}
    if lost := [name for name, found in names.items() if not found]:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise FileError(
            f"{checkpoint.folder} lacks {lost[0]!r}{more} of {type(model).__name__}"
            f".{did_you_mean(lost[0], checkpoint.files)} Where transformers renames tensors as it "
            "reads, save the model once with save_pretrained(…, save_original_format=False)"
        )
    if odd := sorted(checkpoint.files.keys() - names.values()):
        raise FileError(
            f"{checkpoint.folder} holds {odd[0]!r}, which {type(model).__name__} has no place for: "
            "config.json is of another model, or transformers renames tensors as it reads; then "
            "save the model once with save_pretrained(…, save_original_format=False)"
        )
    return names
