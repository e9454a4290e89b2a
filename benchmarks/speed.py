"""What analysis and speed-up cost, in forward passes of the same model and input.

ResNet-50, batch 2, 224², on CPU, next to Torch-Pruning in the same run.  The tasks take turns, and
the medians are compared, so that a busy moment of the machine hits all of them.

    python -m benchmarks.speed --rounds 7
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.record import table, write
from secateur.nni.pruning import L1NormPruner
from secateur.nni.speedup import ModelSpeedup
from secateur.nni.utils import auto_set_dependency_group_ids
from tests.zoo import randomise, torchvision_models

TARGETS = {"analyze": "≤ 2", "ModelSpeedup": "< 3"}
LLAMA_SECONDS = 2.0


def resnet50() -> tuple[nn.Module, Tensor]:
    """Return ResNet-50 with random parameters in eval mode, and two images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 224, 224, generator=generator)
    model = torchvision_models().resnet50().eval()
    return randomise(model, images, generator), images


def nni_masks(model: nn.Module, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return L1 masks of half of every group of convolutions."""
    model = copy.deepcopy(model)
    config = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    _, masks = L1NormPruner(model, auto_set_dependency_group_ids(model, config, images)).compress()
    return masks


def tasks(model: nn.Module, images: Tensor) -> dict[str, Callable[[nn.Module], object]]:
    """Return what is measured: name → function of a fresh copy of the model."""
    masks = nni_masks(model, images)

    def forward(net: nn.Module) -> None:
        with torch.no_grad():
            net(images)

    def speedup(net: nn.Module) -> None:
        ModelSpeedup(net, images, masks, verify=False).speedup_model()

    found: dict[str, Callable[[nn.Module], object]] = {
        "forward": forward,
        "analyze": lambda net: secateur.analyze(net, images),
        "ModelSpeedup": speedup,
        "ModelSpeedup, constants masked": lambda net: ModelSpeedup(
            net, images, masks, verify=False, constants="mask"
        ).speedup_model(),
        "prune": lambda net: secateur.prune(net, images, 0.5, "l1", inplace=True, verify=False),
    }
    if find_spec("torch_pruning"):
        found |= torch_pruning_tasks(images)
    return found


def torch_pruning_tasks(images: Tensor) -> dict[str, Callable[[nn.Module], object]]:
    """Return Torch-Pruning's dependency graph, and its pruning of half of every group."""
    import torch_pruning

    def graph(net: nn.Module) -> None:
        torch_pruning.DependencyGraph().build_dependency(net, example_inputs=images)

    def prune(net: nn.Module) -> None:
        torch_pruning.pruner.BasePruner(
            net,
            images,
            importance=torch_pruning.importance.MagnitudeImportance(p=1),
            pruning_ratio=0.5,
            ignored_layers=[net.get_submodule("fc")],
        ).step()

    return {"Torch-Pruning graph": graph, "Torch-Pruning prune": prune}


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each task in each round; one round before them warms up.

    As in timeit, Python's cyclic garbage collector waits: with everything here imported one of its
    full collections takes longer than a forward, and hits whichever task it likes.
    """
    model, images = resnet50()
    todo = tasks(model, images)
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(rounds + 1):
        for name, task in todo.items():
            net = copy.deepcopy(model)
            gc.collect()
            gc.disable()
            start = time.perf_counter()
            task(net)
            elapsed = time.perf_counter() - start
            gc.enable()
            if turn:
                seconds[name].append(elapsed)
    return seconds


def llama(rounds: int) -> list[float] | None:
    """Return the seconds to analyse a Llama-2-7B on ``meta``; None without transformers."""
    if not find_spec("transformers"):
        return None
    import transformers

    with torch.device("meta"):  # LlamaConfig's defaults are the 7B's
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(use_cache=False)).eval()
        tokens = torch.zeros(1, 16, dtype=torch.long)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        secateur.analyze(model, {"input_ids": tokens})
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Torch-Pruning's
        seconds = measure(rounds)
    large = llama(rounds)
    one, fastest = statistics.median(seconds["forward"]), min(seconds["forward"])
    rows = []
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{1000 * min(times):.0f} … {1000 * max(times):.0f}"
        goal = TARGETS.get(name, "")
        ratios = [f"{middle / one:.2f}", f"{min(times) / fastest:.2f}"]
        rows.append([name, f"{1000 * middle:.0f}", spread, *ratios, goal])
    heading = ["ResNet-50, batch 2, 224²", "median ms", "range ms"]
    text = table([*heading, "÷ forward", "fastest ÷ fastest forward", "goal"], rows)
    text += (
        f"\n\nMedians of {rounds} rounds in which the tasks took turns; nothing is verified, and "
        "Python's garbage collector waits."
    )
    if large:
        text += (
            f"\n\nLlama-2-7B on `meta`, 16 tokens: analysed in {statistics.median(large):.2f} s "
            f"(goal {LLAMA_SECONDS} s; the first time, with imports and caches, {large[0]:.2f} s)."
        )
    else:
        text += "\n\nLlama-2-7B on `meta`: not measured, transformers is not installed."
    data: dict[str, Any] = {"seconds": seconds, "llama_2_7b_meta_seconds": large}
    write("speed", "Cost of analysis and speed-up", data, text)


if __name__ == "__main__":
    main()
