"""The models that the coverage benchmark tries: families of names, and how to build each one.

A family is a list of names and a function of one name that returns a model in eval mode with the
library's own initial values, and an example input.  ``build`` then makes every value random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from secateur.types import Example
from tests.zoo import randomise

from . import timm, torchvision, transformers


@dataclass(frozen=True)
class Family:
    """Models of one library and kind, with the share of them that must be covered."""

    names: Iterable[str]
    make: Callable[[str], tuple[nn.Module, Example]]
    goal: float


FAMILIES = {
    "torchvision classification": Family(torchvision.CLASSIFICATION, torchvision.classifier, 0.99),
    "torchvision segmentation": Family(torchvision.SEGMENTATION, torchvision.segmenter, 0.90),
    "torchvision detection": Family(torchvision.DETECTION, torchvision.detector, 0.90),
    "torchvision video": Family(torchvision.VIDEO, torchvision.video, 0.90),
    "timm": Family(timm.MODELS, timm.make, 0.97),
    "transformers": Family(transformers.MODELS, transformers.make, 0.95),
}


def build(family: str, name: str, seed: int = 0) -> tuple[nn.Module, Example]:
    """Return a model in eval mode with random parameters and statistics, and an example input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, example = FAMILIES[family].make(name)
    generator = torch.Generator().manual_seed(seed)
    return randomise(model.eval(), example, generator), example
