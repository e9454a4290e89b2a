"""Models for tests and benchmarks: torchvision's CNNs with random everything, CIFAR ResNets."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.graph.outputs import tensors_of
from secateur.types import Example, call_arguments

TORCHVISION: dict[str, tuple[dict[str, Any], int]] = {
    "resnet18": ({}, 64),
    "resnet50": ({}, 64),
    "wide_resnet50_2": ({}, 64),
    "resnext50_32x4d": ({}, 64),
    "vgg16_bn": ({}, 32),
    "densenet121": ({}, 64),
    "mobilenet_v2": ({}, 64),
    "mobilenet_v3_large": ({}, 64),
    "efficientnet_b0": ({}, 64),
    "shufflenet_v2_x1_0": ({}, 64),
    "squeezenet1_1": ({}, 64),
    "googlenet": ({"init_weights": False}, 64),
    "inception_v3": ({"init_weights": False}, 75),
    "regnet_y_400mf": ({}, 64),
    "mnasnet1_0": ({}, 64),
    "convnext_tiny": ({}, 64),
    "alexnet": ({}, 63),
}
"""Name → constructor arguments and the side of a small square input that the model accepts.

googlenet and inception_v3 keep their auxiliary heads, as their constructors' defaults do; in eval
mode the heads do not run.
"""


_declared = torch.library.Library("torchvision", "FRAGMENT")  # operators live as long as this


@cache
def torchvision_models() -> ModuleType:
    """Import torchvision.models, also where torchvision's compiled operators do not load.

    torchvision from PyPI is built for the CUDA build of torch.  Next to a CPU build its library
    does not load, and the import fails because shape functions are registered for operators that
    nobody declared.  Declaring them is enough: no model here runs them.
    """
    for _ in range(20):
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _declared.define(f"{missing[1]}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise RuntimeError("torchvision still misses operators after 20 were declared")


def build(name: str, *, batch: int = 2, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return the torchvision model in eval mode with random parameters, and an example input.

    Every parameter and BatchNorm statistic is random and none is trivially 0 or 1, so that a
    constant that is dropped, or a slice that is taken from the wrong place, shows in the output.
    """
    arguments, side = TORCHVISION[name]
    constructor = getattr(torchvision_models(), name)
    with torch.random.fork_rng(devices=[]):
        model = constructor(**arguments).eval()
    generator = torch.Generator().manual_seed(seed)
    example = torch.randn(batch, 3, side, side, generator=generator)
    return randomise(model, example, generator), example


def randomise(model: nn.Module, example: Example, generator: torch.Generator) -> nn.Module:
    """Fill every parameter and BatchNorm statistic with random values, in place.

    Weights keep the variance of their input (He et al. 2015), or less where the outputs would not
    be finite and of order 1000 at most.  Running statistics are those of the example, disturbed:
    activations stay of order 1 through any number of layers.
    """
    for gain in (2.0, 1.0, 0.3, 0.1):
        _randomise(model, example, generator, gain)
        with torch.no_grad():
            found = [x for x in _outputs(model, example) if x.is_floating_point()]
        if all(bool(x.isfinite().all()) and float(x.abs().max()) < 1e3 for x in found):
            break
    return model


def _outputs(model: nn.Module, example: Example) -> list[Tensor]:
    args, kwargs = call_arguments(example)
    return list(tensors_of(model(*args, **kwargs)))


def _randomise(model: nn.Module, example: Example, generator: torch.Generator, gain: float) -> None:
    def normal(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        tensor.normal_(mean, std, generator=generator)

    def uniform(tensor: Tensor) -> None:
        tensor.uniform_(0.5, 1.5, generator=generator)

    def statistics(module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        std = x.std(1, correction=0).clamp_min(0.05)
        noise = torch.empty_like(std)
        normal(noise, 0.3)
        module.running_mean.copy_(x.mean(1) + noise * std)
        uniform(noise)
        module.running_var.copy_(noise * std**2)

    hooks = []
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.is_floating_point():
                    continue
                if parameter.dim() > 1 and name == "weight":
                    normal(parameter, math.sqrt(gain / parameter[0].numel()))
                elif squeezed(parameter) > 1:  # projections of other names, positions, biases
                    normal(parameter, math.sqrt(gain / max(parameter.shape[-2:])))
                elif "bias" in name:
                    normal(parameter, 0.3)
                else:  # the weight of a norm, the scale of a layer
                    uniform(parameter)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is None:
                    continue
                module.reset_running_stats()  # for those that the example does not reach
                hooks.append(module.register_forward_pre_hook(statistics))
        _outputs(model, example)
    for hook in hooks:
        hook.remove()


def squeezed(tensor: Tensor) -> int:
    """Return the number of dimensions that are not of size 1."""
    return sum(size != 1 for size in tensor.shape)


M = TypeVar("M", bound=nn.Module)


class CifarBlock(nn.Module):
    """Two convolutions and the option-A shortcut: every second pixel, zeros as new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """The ResNet for 32×32 images of He et al. 2015, of depth 6n + 2."""

    def __init__(self, depth: int = 20):
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        rest = [CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(CifarBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def shared_data_folder() -> Path:
    """Return where the shared data is: SECATEUR_SHARED, or shared/ next to the repository."""
    shared = os.environ.get("SECATEUR_SHARED")
    return (Path(shared) if shared else Path(__file__).resolve().parents[2] / "shared") / "data"


@cache
def shared_data() -> ModuleType:
    """Return the shared data's own loader: ``cifar10``, ``weights`` and the rest of its README."""
    path = shared_data_folder() / "load.py"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: set SECATEUR_SHARED to the folder that holds data/load.py"
        )
    spec = importlib.util.spec_from_file_location("secateur_shared_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pretrained_cifar_resnet(depth: int = 20) -> CifarResNet:
    """Return the CIFAR-10 ResNet of that depth (20, 32, 44, 56) in eval mode with its weights."""
    return _with_shared_weights(CifarResNet(depth), f"resnet{depth}")


def _with_shared_weights(model: M, name: str) -> M:
    weights = shared_data().weights(name)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return model.eval()


def cifar_images(split: str = "test", *, lossless: bool = True) -> tuple[Tensor, Tensor]:
    """Return normalised CIFAR-10 images (n, 3, 32, 32) of a split, and their labels (n,).

    Lossless: the 8,068 of "train" or 1,017 of "test" known bit for bit; otherwise all, from JPEG.
    """
    data = shared_data()
    pixels, labels = data.cifar10(split, lossless=lossless)
    mean, std = torch.tensor(data.CIFAR_MEAN), torch.tensor(data.CIFAR_STD)
    images = (torch.from_numpy(pixels) / 255 - mean) / std
    return images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


class TinyDarknet(nn.Module):
    """J. Redmon's ImageNet network of 1.04 million parameters, for images in [0, 1]."""

    layers = (
        *((16, 3), None, (32, 3), None, (16, 1), (128, 3), (16, 1), (128, 3), None),
        *((32, 1), (256, 3), (32, 1), (256, 3), None, (64, 1), (512, 3), (64, 1), (512, 3)),
        (128, 1),
    )
    """(channels, kernel) of each convolution, None for a pooling."""

    def __init__(self) -> None:
        super().__init__()
        made: list[nn.Module] = []
        width = 3
        for layer in self.layers:
            made.append(self._convolution(width, *layer) if layer else nn.MaxPool2d(2))
            width = layer[0] if layer else width
        self.features = nn.Sequential(*made)
        self.classifier = nn.Conv2d(width, 1000, 1)

    @staticmethod
    def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs, eps=1e-3), nn.LeakyReLU(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))


def pretrained_tiny_darknet() -> TinyDarknet:
    """Return Tiny Darknet in eval mode with its weights."""
    return _with_shared_weights(TinyDarknet(), "tiny_darknet")
