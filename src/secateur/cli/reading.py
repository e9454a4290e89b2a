"""``--data`` of the commands that measure a language model: a text, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.runtime.perplexity import Perplexity, perplexity

from .data import read_tokens
from .models import Loaded


@dataclass(frozen=True)
class Reading:
    """A text, and in which windows it is read.

    Attributes:
        data: as on the command line.
        window: tokens that a model reads at once; None for as many as it can.
        stride: how far apart windows begin; None for the window.
        size: windows of a batch.
    """

    data: str
    window: int | None = None
    stride: int | None = None
    size: int = 8

    def of(self, loaded: Loaded, tokenizer: str | None = None) -> tuple[Perplexity, int]:
        """Return a model's perplexity on the text, and of how many tokens that is.

        Args:
            loaded: the model.
            tokenizer: the folder with the tokenizer; by default where the model is from.
        """
        place = loaded.source.model if tokenizer is None else tokenizer
        tokens, longest = read_tokens(self.data, loaded.model, place)
        window = longest if self.window is None else self.window
        return perplexity(loaded.model, tokens, window, self.stride, self.size), len(tokens)
