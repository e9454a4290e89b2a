"""Example inputs on the command line: shapes, or a function of yours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod
from reprlib import repr as brief
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.types import Example

from .places import called

SHAPE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:,\d+)*)(?::(?P<below>\d+))?")
TOKENS = 16
"""Length of the text that a language model is tried on."""


MOST = 2**28
"""Numbers of one random input: a gigabyte of floats."""
DIGITS = 15


def read_inputs(words: Sequence[str]) -> Example:
    """Return the example that ``--input`` words stand for.

    Each word is one input: ``1,3,224,224`` random floats of that shape, ``1,16:1000`` whole numbers
    below 1000, ``mask=1,16:2`` the keyword argument ``mask``.  One word ``module:function``
    is called, and returns the whole example.

    >>> read_inputs(["2,3", "2,4:10"])[1].dtype
    torch.int64
    >>> read_inputs(["ids=1,4:10"])["ids"].shape
    torch.Size([1, 4])
    """
    found = [SHAPE.fullmatch(word) for word in words]
    if len(words) == 1 and found[0] is None and ":" in words[0]:
        return called(words[0])
    for word, match in zip(words, found, strict=True):
        if match is None:
            raise ConfigError(
                f"--input {word!r}: write a shape such as 1,3,224,224 (floats), 1,16:1000 (whole "
                "numbers below 1000) or input_ids=1,16:1000 (by name), or module:function"
            )
    generator = torch.Generator().manual_seed(0)
    matches = [match for match in found if match]
    values = [(m["name"], _random(m["shape"], m["below"], generator)) for m in matches]
    names = [name for name, _ in values]
    if all(name is None for name in names):
        return values[0][1] if len(values) == 1 else tuple(value for _, value in values)
    if None in names:
        raise ConfigError("--input: give all inputs by name, or none")
    return dict(values)


def _random(shape: str, below: str | None, generator: torch.Generator) -> Tensor:
    lengths = [*shape.split(","), below or "1"]
    if any(len(length) > DIGITS for length in lengths):
        raise ConfigError(f"--input {brief(shape)}: a number of more than {DIGITS} digits")
    *sizes, most = map(int, lengths)
    if prod(sizes) > MOST:
        raise ConfigError(
            f"--input {brief(shape)}: {prod(sizes):.3g} numbers, and at most {MOST:.3g} are made: "
            "an example only shows the structure, so one sample of a usual size is enough"
        )
    if below is None:
        return torch.randn(sizes, generator=generator)
    return torch.randint(0, max(most, 1), sizes, generator=generator)


def image(channels: int, height: int, width: int | None = None) -> Tensor:
    """Return a random image, (1, channels, height, width)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, height, width or height, generator=generator)


def tokens_or_image(model: nn.Module) -> Example | None:
    """Return what a transformers model says that it takes: tokens or pixels; None for the rest."""
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kind = getattr(model, "main_input_name", "")
    generator = torch.Generator().manual_seed(0)
    if kind == "pixel_values":
        size = getattr(config, "image_size", 224)
        sides = size if isinstance(size, (list, tuple)) else (size, size)
        return {kind: image(getattr(config, "num_channels", 3), *sides)}
    if kind == "input_ids" and getattr(text, "vocab_size", None):
        most = getattr(text, "max_position_embeddings", None) or TOKENS
        shape = (1, min(TOKENS, int(most)))
        example: dict[str, Any] = {
            kind: torch.randint(0, text.vocab_size, shape, generator=generator)
        }
        if hasattr(text, "use_cache"):  # torch.export knows no cache among the outputs
            example["use_cache"] = False
        if getattr(config, "is_encoder_decoder", False):
            example["decoder_input_ids"] = example[kind].clone()
        return example
    return None
