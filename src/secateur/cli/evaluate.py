"""``secateur evaluate``: how well a language model predicts a text, and how fast it reads."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from secateur.runtime.measure import figure

from .models import load
from .options import NOTHING, Given, Model
from .reading import Reading
from .show import AsJson, show


def evaluate(
    model: Model,
    /,
    *,
    data: str,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
    given: Given = NOTHING,
    as_json: AsJson = False,
) -> None:
    """Measure a language model's perplexity on a text, and how many tokens it reads in a second.

    Parameters
    ----------
    data
        A text, .txt or .jsonl (MODEL has a tokenizer), or .npz or .safetensors with one array of
        ids.
    window
        Tokens that the model reads at once; by default as many as it can, at most 512, or a row.
    stride
        How far apart windows begin; by default they do not overlap. Every token counts once.
    batch_size
        Windows of a batch.
    """
    reading = Reading(data, window, stride, batch_size)
    found, tokens = reading.of(load(model, given))
    table = Table(title=f"{model} on {data}", title_justify="left", show_header=False)
    for label, value in (
        ("perplexity", f"{found.value:.4g}"),
        ("tokens predicted", f"{found.predictions} of {tokens}"),
        ("windows", f"{found.windows} of {found.window} tokens, {found.stride} apart"),
        ("tokens read per second", figure(found.tokens_per_second)),
    ):
        table.add_row(label, value)
    show(table, {**asdict(found), "tokens": tokens}, as_json=as_json)
