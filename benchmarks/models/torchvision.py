"""torchvision: all classifiers, segmenters and video models; of detectors all but the boxes.

Inputs are as small as each model accepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo import torchvision_models

_models = torchvision_models()

CLASSIFICATION: Sequence[str] = _models.list_models(module=_models)
SEGMENTATION: Sequence[str] = _models.list_models(module=_models.segmentation)
DETECTION: Sequence[str] = _models.list_models(module=_models.detection)
VIDEO: Sequence[str] = _models.list_models(module=_models.video)

# The side of the smallest sensible image, where it is not 64.
_SIDES = {"alexnet": 63, "inception_v3": 75, "maxvit_t": 224, "vgg": 32, "vit_h_14": 56}


def classifier(name: str) -> tuple[nn.Module, Tensor]:
    """Return a classifier and two images."""
    side = next((s for start, s in _SIDES.items() if name.startswith(start)), 64)
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # torchvision's own takes minutes
    if name.startswith("vit_"):
        options["image_size"] = side
    return getattr(_models, name)(**options), torch.randn(2, 3, side, side)


def segmenter(name: str) -> tuple[nn.Module, Tensor]:
    """Return a segmenter and two images."""
    model = getattr(_models.segmentation, name)(weights=None, weights_backbone=None)
    return model, torch.randn(2, 3, 64, 64)


class Detector(nn.Module):
    """A detector without its search for boxes: the backbone's features, and what its head says."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: Tensor) -> tuple[Any, Any]:
        features = list(self.backbone(images).values())
        return features, self.head(features)


def detector(name: str) -> tuple[nn.Module, Tensor]:
    """Return a detector's backbone with its dense head, and two images."""
    model = getattr(_models.detection, name)(weights=None, weights_backbone=None)
    head = model.rpn.head if hasattr(model, "rpn") else model.head
    side = 300 if name.startswith("ssd300") else 96
    return Detector(model.backbone, head), torch.randn(2, 3, side, side)


def video(name: str) -> tuple[nn.Module, Tensor]:
    """Return a video classifier and one or two short clips."""
    clips, frames, side = 2, 8, 64
    if name == "s3d" or name.startswith("mvit"):  # built for one size
        clips, frames, side = 1, 16, 224
    return getattr(_models.video, name)(), torch.randn(clips, 3, frames, side, side)
