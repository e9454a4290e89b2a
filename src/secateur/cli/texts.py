"""Texts for ``--data``: plain ones, and JSON lines with a text each, read by MODEL's tokenizer."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from itertools import chain
from os.path import isfile  # which takes any text
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, did_you_mean
from secateur.runtime.extras import library
from secateur.runtime.io import read_text

MOST_TOKENS = 512
"""The longest text of a batch, also where a model could read a longer one."""
TEXTS = (".txt", ".jsonl")
LINES = re.compile(r"(?P<path>.*\.jsonl)(?::(?P<field>[^:/\\]+))?", re.IGNORECASE)
FIELD = "text"


SEVERAL, LARGEST = 8, 8
"""Batches that are made where there are samples enough, and samples of one at most."""


def batch_of(samples: int, asked: int | None) -> int:
    """Return how many samples make a batch: a repair needs several, as one of four judges.

    >>> batch_of(1000, None), batch_of(16, None), batch_of(3, None), batch_of(16, 8)
    (8, 2, 1, 8)
    """
    return asked or max(1, min(LARGEST, samples // SEVERAL))


def is_text(path: Path) -> bool:
    """Tell whether ``--data`` names a text.

    >>> [is_text(Path(name)) for name in ("a.txt", "a.jsonl", "a.jsonl:content", "a.npz")]
    [True, True, True, False]
    """
    return path.suffix.lower() == ".txt" or LINES.fullmatch(str(path)) is not None


def text_batches(path: Path, model: nn.Module, folder: str, size: int | None) -> list[Any]:
    """Return batches of a text, read by the model's tokenizer.

    A model that writes text itself is given windows of all of it, so that nothing is padded; any
    other one a text of JSON lines, or a line, as a sample, padded to the longest of a batch, with
    an ``attention_mask`` that says what is padding.

    Args:
        path: of the text.
        model: what reads it.
        folder: where MODEL was read from, for its tokenizer.
        size: windows or samples of a batch, by default as ``batch_of`` says.

    Raises:
        ConfigError: there is no text in it, or the model reads none.
        FileError: it cannot be read.
    """
    tokenizer = _tokenizer(path, folder)
    own: Any = model
    if getattr(own.config, "is_encoder_decoder", False):
        raise ConfigError(
            f"--data {path}: {type(model).__name__} reads two texts, one of which it writes: give "
            "--data module:function, with both"
        )
    texts = list(_texts(path))
    samples = [line for text in texts for line in _samples(path, text) if line.strip()]
    if not samples:
        raise ConfigError(f"--data {path}: there is no text in it")
    longest = _longest(own.config, tokenizer)
    if own.can_generate() or tokenizer.pad_token is None:
        windows = _windows(_ids(texts, tokenizer), longest)
        extra = {"use_cache": False} if hasattr(own.config, "use_cache") else {}
        parts = windows.split(batch_of(len(windows), size))
        return [{"input_ids": part, **extra} for part in parts]
    options = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    if "attention_mask" in inspect.signature(model.forward).parameters:
        options["return_attention_mask"] = True  # a few tokenizers leave it out
    size = batch_of(len(samples), size)
    starts = range(0, len(samples), size)
    return [dict(tokenizer(samples[start : start + size], **options)) for start in starts]


def text_tokens(path: Path, model: nn.Module, folder: str) -> tuple[Tensor, int]:
    """Return the ids of a text, one after the other, and how many the model reads at once."""
    tokenizer, own = _tokenizer(path, folder), model.config
    ids = torch.tensor(_ids(list(_texts(path)), tokenizer)).long()
    return ids, _longest(own, tokenizer)


def _texts(path: Path) -> Iterator[str]:
    """Yield the one text of a file, or that of each of its JSON lines."""
    match = LINES.fullmatch(str(path))
    if match is None:
        yield read_text(path)
        return
    place, field = match["path"], match["field"] or FIELD
    for number, line in enumerate(read_text(Path(place)).splitlines(), 1):
        if not line.strip():
            continue
        try:
            held = json.loads(line)
        except (ValueError, RecursionError) as wrong:
            raise ConfigError(f"--data {place}, line {number}: no JSON ({wrong})") from wrong
        text = held.get(field) if isinstance(held, dict) else None
        if not isinstance(text, str):
            names = [name for name, value in _items(held) if isinstance(value, str)]
            others = f" It has {', '.join(map(repr, names[:5]))}." if names else ""
            raise ConfigError(
                f"--data {place}, line {number}: has no text {field!r}."
                f"{did_you_mean(field, names)}{others} Name another one as {Path(place).name}:field"
            )
        yield text


def _items(held: Any) -> list[tuple[str, Any]]:
    return list(held.items()) if isinstance(held, dict) else []


def _samples(path: Path, text: str) -> list[str]:
    return text.splitlines() if path.suffix.lower() == ".txt" else [text]


def _ids(texts: list[str], tokenizer: Any) -> list[int]:
    """Return the ids of texts, one after the other; of several, each with its end."""
    end = [] if len(texts) == 1 or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    each = (tokenizer(text, verbose=False)["input_ids"] for text in texts)
    return list(chain.from_iterable([*ids, *(end if ids[-1:] != end else [])] for ids in each))


def _tokenizer(path: Path, folder: str) -> Any:
    """Return the tokenizer of a Hugging Face folder."""
    if not any(isfile(Path(folder) / name) for name in ("config.json", "tokenizer.json")):
        raise ConfigError(
            f"--data {path}: a text needs a tokenizer, which {folder} has none of: give a Hugging "
            "Face folder for MODEL, or --data module:function"
        )
    transformers = library("transformers", "transformers", f"--data {path}", "hf")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as wrong:  # each kind of tokenizer raises its own
        raise ConfigError(f"--data {path}: the tokenizer of {folder} fails: {wrong}") from wrong
    files = [Path(folder) / name for name in tokenizer.vocab_files_names.values()]
    if files and not any(file.is_file() for file in files):  # then it knows no word
        names = ", ".join(file.name for file in files)
        raise ConfigError(f"--data {path}: {folder} has no tokenizer: none of {names}")
    return tokenizer


def _windows(tokens: list[int], longest: int) -> Tensor:
    """Return a text as rows of as many tokens each; what is left at its end is left out."""
    length = min(longest, len(tokens))
    count = len(tokens) // length
    return torch.tensor(tokens[: count * length]).reshape(count, length)


def _longest(config: Any, tokenizer: Any) -> int:
    """Return how many tokens a text of a batch has at most."""
    inner = config.get_text_config()
    own = getattr(inner, "max_position_embeddings", None) or MOST_TOKENS
    return int(min(own, tokenizer.model_max_length, MOST_TOKENS))
