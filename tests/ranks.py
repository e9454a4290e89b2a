"""What two ranks do together; each function is the target of a process."""

from __future__ import annotations

import copy
import importlib
import os
import traceback
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from secateur import Config, Pruner
from secateur.errors import ConfigError, DivergenceError, FileError
from secateur.masks import masking
from secateur.runtime.distributed import whole
from tests.by_hand import ByHand, by_hand

RANKS = 2
STEPS = 6
EXAMPLE = torch.zeros(2, 6)


def run(rank: int, folder: str, checks: list[str], module: str = __name__) -> None:
    """Join the process group, run checks of a module, and leave what each found in a file."""
    known = vars(importlib.import_module(module))
    known = known.get("CHECKS", known)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    for name in checks:
        try:
            found[name] = known[name](rank)
        except Exception:
            found[name] = traceback.format_exc()
            break  # the other rank may wait for this one
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    if all(isinstance(value, dict) for value in found.values()):
        dist.destroy_process_group()
    os._exit(0)  # without waiting for the other rank


def both_ranks(
    processes: BaseContext, folder: str, checks: list[str], module: str = __name__
) -> list[dict[str, Any]]:
    """Return what each rank found, by check."""
    started = [
        processes.Process(target=run, args=(rank, folder, checks, module), daemon=True)
        for rank in range(RANKS)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
        if process.is_alive():
            process.kill()
    return [torch.load(f"{folder}/rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)
        )


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return half of the data of a step, each rank's its own."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator).chunk(RANKS)[rank]
    return x, (x[:, :3].sum(1) > 0).long()


def train(model: nn.Module, pruner: Pruner, rank: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        x, y = batch(step, rank)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruner.step()


def pruned(
    wrap: Callable[[nn.Module], nn.Module], settings: dict[str, Any], rank: int
) -> dict[str, Tensor]:
    model = net()
    wrapped = wrap(model)
    pruner = Pruner(model, Config(sparsity=0.5, steps=3, **settings), None, structure=STRUCTURE)
    train(wrapped, pruner, rank)
    return dict(pruner.masks)


def _structure() -> Any:
    from secateur import analyze

    return analyze(net(), EXAMPLE)


STRUCTURE = _structure()
SETTINGS = {
    "l2": {"criterion": "l2", "schedule": "linear"},
    "taylor": {"criterion": "taylor", "schedule": "cubic"},
    "movement": {"method": "movement"},
}


def _sharded(model: nn.Module) -> nn.Module:
    for module in model:
        if isinstance(module, nn.Linear | ByHand):
            fully_shard(module)
    return fully_shard(model)


def ddp_l2(rank: int) -> dict[str, Tensor]:
    return pruned(DistributedDataParallel, SETTINGS["l2"], rank)


def ddp_taylor(rank: int) -> dict[str, Tensor]:
    return pruned(DistributedDataParallel, SETTINGS["taylor"], rank)


def ddp_movement(rank: int) -> dict[str, Tensor]:
    return pruned(DistributedDataParallel, SETTINGS["movement"], rank)


def fsdp_l2(rank: int) -> dict[str, Tensor]:
    return pruned(_sharded, SETTINGS["l2"], rank)


def fsdp_taylor(rank: int) -> dict[str, Tensor]:
    return pruned(_sharded, SETTINGS["taylor"], rank)


def fsdp_movement(rank: int) -> dict[str, Tensor]:
    return pruned(_sharded, SETTINGS["movement"], rank)


def fsdp_state(rank: int) -> dict[str, Tensor]:
    """The full state of a sharded, masked model; and the pruner's state loaded into another."""
    model = _sharded(net())
    pruner = Pruner(model, Config(sparsity=0.5, steps=3, criterion="l2"), structure=STRUCTURE)
    train(model, pruner, rank)
    found = {name: value.full_tensor() for name, value in model.state_dict().items()}
    twin = _sharded(net())
    other = Pruner(twin, Config(sparsity=0.5, steps=3, criterion="l2"), structure=STRUCTURE)
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(pruner.state_dict())
    for name, value in twin.named_parameters():
        found[f"twin {name}"] = value.full_tensor()
    for name, value in model.named_parameters():
        found[f"dense {name}"] = value.full_tensor()
    return found


def local_decision(rank: int) -> dict[str, Tensor]:
    """What each rank would mask if it decided from its own data alone."""
    model = net()
    x, y = batch(0, rank)
    F.cross_entropy(model(x), y).backward()
    weight = model[0].weight
    score = (weight * weight.grad).square().sum(1)
    return {"0.weight": score > score.sort().values[7]}


def averaged_statistics(rank: int) -> dict[str, Tensor]:
    """Without DDP, each rank with gradients of its own: the statistics are averaged."""
    model = net()
    config = Config(sparsity=0.5, criterion="taylor", normalize="none")
    pruner = Pruner(model, config, structure=STRUCTURE)
    x, y = batch(0, rank)
    F.cross_entropy(model(x), y).backward()
    pruner.observe()
    return pruner.decide()


def divergence(rank: int) -> dict[str, Tensor]:
    """Ranks whose weights differ are told so, and no mask is on."""
    model = net()
    with torch.no_grad():
        model[0].weight[rank * 8 : rank * 8 + 8] *= 0.01
    pruner = Pruner(model, Config(sparsity=0.5), structure=STRUCTURE)
    with pytest.raises(DivergenceError, match=f"rank {rank} decided"):
        pruner.step()
    return {"masked": torch.tensor(masking.is_masked(model))}


def ddp_copies(rank: int) -> dict[str, Tensor]:
    """Masks are no buffers: DDP sends none, whether they are on before or after it wraps."""
    model = net()
    masking.put_on(model, {"0.weight": torch.eye(16, 6)})
    wrapped = DistributedDataParallel(model)
    assert not wrapped.modules_buffers
    wrapped(EXAMPLE).sum().backward()
    twin = copy.deepcopy(model)
    return {"state": twin.state_dict()["0.weight"]}


def _gradients(wrap: Callable[[nn.Module], nn.Module], model: nn.Module, rank: int) -> list[Tensor]:
    wrapped, found = wrap(model), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(2):
        x, y = batch(step, rank)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        found += [t for p in model.parameters() for t in (p.grad, p.detach().clone())]
    return [whole(tensor) for tensor in found]


def products(rank: int) -> dict[str, Tensor]:
    """Gradients and weights, masked and multiplied by hand: whole, in DDP and sharded."""
    chance = torch.Generator().manual_seed(1)
    masks = {n: torch.rand(p.shape, generator=chance) > 0.4 for n, p in net().named_parameters()}
    found = {}
    for name, wrap in {"ddp": DistributedDataParallel, "fsdp": _sharded}.items():
        masked = net()
        masking.put_on(masked, masks)
        mine = _gradients(wrap, masked, rank)
        theirs = _gradients(wrap, by_hand(net(), masks), rank)
        same = [torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)]
        found[name] = torch.tensor(same)
    return found


def calibrated(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """The masks that data decides on, and the weights that it repairs."""
    pruner = Pruner(model, Config(sparsity=0.5, criterion="activation"), structure=STRUCTURE)
    pruner.calibrate(batches)
    masks = pruner.decide()
    pruner.repair(batches)
    found = {f"mask {name}": mask for name, mask in masks.items()}
    return found | {name: p.detach().clone() for name, p in model.named_parameters()}


def inputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(32, 6, generator=generator) for _ in range(4 * RANKS)]


def ddp_repair(rank: int) -> dict[str, Tensor]:
    """Each rank has batches of its own."""
    return calibrated(net(), inputs()[4 * rank : 4 * rank + 4])


def joined_epochs(rank: int) -> dict[str, Tensor]:
    """Ranks with more and fewer batches, and a step of the pruner after each epoch."""
    model = net()
    pruner = Pruner(model, Config(sparsity=0.5, steps=2), structure=STRUCTURE)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        with wrapped.join():
            for i in range(2 + rank):
                x, y = batch(i, rank)
                optimizer.zero_grad()
                F.cross_entropy(wrapped(x), y).backward()
                optimizer.step()
        pruner.step()
    return dict(pruner.masks)


def cut_sharded(rank: int) -> dict[str, Tensor]:
    """A sharded model is no model to cut: finish() says what to do, and the masks stay on."""
    model = net()
    pruner = Pruner(model, Config(sparsity=0.5), EXAMPLE)
    _sharded(model)
    pruner.step()
    with pytest.raises(ConfigError, match="is sharded"):
        pruner.finish()
    return dict(pruner.masks)


def latency_goal(rank: int) -> dict[str, Tensor]:
    """Every rank would measure other times: a goal of time is decided by those of the first."""
    pruner = Pruner(net(), Config(sparsity=0.3, of="latency", strict=False), EXAMPLE, trained=False)
    masks = dict(pruner.decide())
    result = pruner.finish(inplace=False)
    cost = pruner.budget.goals[0].cost
    times = [found.median for _, found in sorted(cost.table.found.items())]
    return masks | {"times": torch.tensor(times), "gone": torch.tensor(result.goals[0].gone)}


def latency_sharded(rank: int) -> dict[str, Tensor]:
    """A sharded model does not run on one rank alone: all are told so, and nobody waits."""
    with pytest.raises(ConfigError, match="before fully_shard"):
        Pruner(_sharded(net()), Config(sparsity=0.3, of="latency"), EXAMPLE, structure=STRUCTURE)
    return {}


def latency_failing(rank: int) -> dict[str, Tensor]:
    """A table that the first rank cannot read is an error on all."""
    config = Config(sparsity=0.3, of="latency", latency_table=__file__)
    with pytest.raises(FileError, match="no table of latencies"):
        Pruner(net(), config, EXAMPLE, structure=STRUCTURE)
    return {}
