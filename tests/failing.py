"""Two ranks, of which one fails: each step of a pruner, with each kind of failure.

A form makes everything ready on both ranks, and returns what one of them will fail at.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import secateur as sc
from secateur import Config, Pruner
from secateur.masks.resume import write_state
from secateur.selection.decision import Decision

from .process.process import changed, state_of
from .ranks import EXAMPLE, STRUCTURE, batch, inputs, net, train

Call = tuple[nn.Module, Callable[[], Any]]
"""A model, and what is done to it, at which one rank fails."""
FAILING = 1


class Odd(Exception):
    """Of a class that the library does not know, and made of more than a text."""

    def __init__(self, code: int, text: str):
        super().__init__(code, text)


def pruner(model: nn.Module | None = None, **settings: Any) -> Pruner:
    config = Config(**{"sparsity": 0.5, **settings})
    return Pruner(net() if model is None else model, config, EXAMPLE, structure=STRUCTURE)


def failing(error: Exception, after: int = 0) -> Iterator[Tensor]:
    """Batches that end in an error."""
    yield from inputs()[:after]
    raise error


def bad_data(kind: str) -> Any:
    nan = torch.full((8, 6), torch.nan)
    return {
        "nan": lambda: [*inputs()[:2], nan],
        "shape": lambda: [*inputs()[:2], torch.zeros(8, 5)],
        "dtype": lambda: [torch.zeros(8, 6, dtype=torch.int64)],
        "none": lambda: [],
        "no iterable": lambda: 3,
        "text": lambda: ["abc"],
        "raises": lambda: failing(ValueError("the disk of this rank"), 2),
        "raises another": lambda: failing(Odd(3, "of this rank")),
        "memory": lambda: failing(torch.OutOfMemoryError("no memory"), 1),
        "system": lambda: failing(OSError(5, "no such disk"), 1),
    }[kind]()


DATA = (
    "nan",
    "shape",
    "dtype",
    "none",
    "no iterable",
    "text",
    "raises",
    "raises another",
    "memory",
    "system",
)


def calibrate(kind: str, rank: int) -> Call:
    own = pruner(criterion="activation")
    return own.model, lambda: own.calibrate(bad_data(kind) if rank == FAILING else inputs())


def repair(kind: str, rank: int) -> Call:
    own = pruner()
    own.decide()
    return own.model, lambda: own.repair(bad_data(kind) if rank == FAILING else inputs()[:4])


def one_shot(kind: str, rank: int) -> Call:
    model = net()
    data = bad_data(kind) if rank == FAILING else inputs()
    return model, lambda: sc.prune(model, EXAMPLE, 0.5, data=data, inplace=True)


def _loss(model: nn.Module, x: Tensor, kind: str) -> Any:
    out = model(x)
    return {
        "good": lambda: out.sum(),
        "vector": lambda: out[0],
        "detached": lambda: out.sum().detach(),
        "key": lambda: {}[0],
    }[kind]()


def loss(kind: str, rank: int) -> Call:
    own = pruner(criterion="taylor")
    computed = partial(_loss, kind=kind if rank == FAILING else "good")
    return own.model, lambda: own.calibrate(inputs(), computed)


def made(kind: str, rank: int) -> Call:
    good: dict[str, Any] = {"sparsity": 0.5}
    bad = {
        "range": {"sparsity": 2.0},
        "name": {"sparsity": 0.5, "criterion": "l3"},
        "no such layer": {"targets": [{"names": ["xyz"], "sparsity": 0.5}]},
        "other": {"sparsity": 0.25},
    }[kind]
    model = net()
    return model, lambda: Pruner(model, bad if rank == FAILING else good, EXAMPLE)


def made_on(kind: str, rank: int) -> Call:
    example = {"shape": torch.zeros(2, 5), "type": "abc", "none": None}[kind]
    given = example if rank == FAILING else EXAMPLE
    model = net()
    return model, lambda: Pruner(model, Config(sparsity=0.5), given)


def _spoiled(model: nn.Module, rank: int) -> nn.Module:
    with torch.no_grad():
        if rank == FAILING:
            model[2].weight[3, 3] = torch.inf
    return model


def decide(kind: str, rank: int) -> Call:
    if kind == "infinite":
        own = pruner(_spoiled(net(), rank))
        return own.model, own.decide
    own = pruner(criterion="taylor")
    if rank != FAILING:
        own.model(EXAMPLE).sum().backward()
        own.observe()
    return own.model, own.decide


def step(kind: str, rank: int) -> Call:
    model = net()
    if kind == "infinite":
        return model, pruner(_spoiled(model, rank)).step
    own = pruner(model, schedule="linear", steps=2)
    if kind == "callback":

        def report(_: dict[str, float]) -> None:
            if rank == FAILING:
                raise Odd(1, "in a callback")

        own.on_prune.append(report)
    return own.model, own.step


def learning(kind: str, rank: int) -> Call:
    own = pruner(method="movement", steps=3)
    train(DistributedDataParallel(own.model), own, rank)
    if rank == FAILING:
        if kind == "nan":
            own.method._scores["0"][0] = torch.nan  # type: ignore[attr-defined]
        else:
            own.method._scores.clear()  # type: ignore[attr-defined]
    x, y = batch(9, rank)
    F.cross_entropy(own.model(x), y).backward()
    return own.model, own.step


def finish(kind: str, rank: int) -> Call:
    own = pruner()
    if rank != FAILING or kind == "forward":
        keeps = {"0": torch.arange(16) < 8, "2": torch.arange(12) < 6}
        own.decision = Decision(keeps=keeps)  # as decide() makes it, which ranks make together
    if rank == FAILING and kind == "forward":
        own.model[1].forward = partial(_refuse, 3)  # type: ignore[method-assign]
    return own.model, own.finish


def _refuse(*_: Any) -> Any:
    raise ValueError("this rank computes no more")


def load(kind: str, rank: int) -> Call:
    own = pruner()
    own.decide()
    folder = Path(mkdtemp())
    write_state(folder / "run", own.state_dict())
    content = (folder / "run").read_bytes()
    spoiled = {"missing": b"", "torn": content[:-5], "flipped": content[:-5] + b"12345"}[kind]
    if rank == FAILING:
        (folder / "run").write_bytes(spoiled)
    if rank == FAILING and kind == "missing":
        (folder / "run").unlink()

    def call() -> None:
        try:
            own.load(folder / "run")
        finally:
            rmtree(folder)

    return own.model, call


def both(kind: str, rank: int) -> Call:
    own = pruner(criterion="activation")
    errors: tuple[Exception, Exception] = (ValueError("of the first"), TypeError("of the second"))
    return own.model, lambda: own.calibrate(failing(errors[rank], rank))


def apart(kind: str, rank: int) -> Call:
    own = pruner(criterion="activation")
    own.calibrate(inputs())
    others = {"calls": own.calibrate, "repair": own.repair}
    return own.model, partial(others[kind], inputs()) if rank == FAILING else own.decide


def again(kind: str, rank: int) -> Call:
    """An error that both ranks have raised before comes once more, on one of them."""
    own = pruner(criterion="activation")
    known = ValueError("which both ranks know")
    for _ in range(2):
        with suppress(ValueError):
            own.calibrate(failing(known, 1))
    late = 1 if kind == "later" else 0
    return own.model, lambda: own.calibrate(failing(known, late) if rank == FAILING else inputs())


def uneven(kind: str, rank: int) -> Call:
    """One rank has more batches, and the trainer joins the other."""
    model = net()
    own = pruner(model, steps=2)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def call() -> None:
        joined = wrapped.join() if kind == "ddp" else Join([wrapped])
        with joined:
            for i in range(3 + rank):
                x, y = batch(i, rank)
                F.cross_entropy(wrapped(x), y).backward()
                optimizer.step()
                own.step()

    return model, call


FORMS: dict[str, tuple[Callable[[str, int], Call], tuple[str, ...]]] = {
    "calibrate": (calibrate, DATA),
    "repair": (repair, DATA),
    "prune": (one_shot, DATA),
    "loss": (loss, ("vector", "detached", "key")),
    "made": (made, ("range", "name", "no such layer", "other")),
    "made on": (made_on, ("shape", "type", "none")),
    "decide": (decide, ("infinite", "no gradients")),
    "step": (step, ("infinite", "callback")),
    "learning": (learning, ("nan", "lost")),
    "finish": (finish, ("forward", "nothing")),
    "load": (load, ("missing", "torn", "flipped")),
    "both": (both, ("fail",)),
    "apart": (apart, ("calls", "repair")),
    "again": (again, ("at once", "later")),
    "uneven": (uneven, ("ddp", "join")),
}
NAMES = [f"{step}: {kind}" for step, (_, kinds) in FORMS.items() for kind in kinds]
FEW = [f"{step}: {FORMS[step][1][-1]}" for step in FORMS if step not in ("prune", "made on")]


def failed(name: str, rank: int) -> dict[str, Any]:
    """Return what a rank raised in a form, what it changed, and that ranks still go together."""
    step, _, kind = name.partition(": ")
    model, call = FORMS[step][0](kind, rank)
    held = state_of(model)
    dist.barrier()
    try:
        call()
    except Exception as error:
        raised = [type(error).__name__, str(error)]
    else:
        raised = ["", ""]
    different = [] if step == "uneven" else changed(held, state_of(model))
    own = pruner()
    own.step()
    masks = {name: mask.tolist() for name, mask in own.masks.items()}
    return {"raised": raised, "changed": different, "masks": masks}


def gone(rank: int, folder: str, when: str) -> None:
    """Be killed on one rank, and leave in a file what the other says of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    own = pruner(criterion="activation", schedule="linear", steps=3)
    own.calibrate(inputs())
    own.step()

    def batches() -> Iterator[Tensor]:
        yield inputs()[0]
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == FAILING:
        own.calibrate(batches() if when == "in a call" else inputs())
        os.kill(os.getpid(), signal.SIGKILL)
    held, raised = state_of(own.model), []
    if when == "between calls":
        own.calibrate(inputs())
    for _ in range(2):  # it says so each time, and nobody waits
        try:
            own.calibrate(inputs())
            own.step()
        except Exception as error:
            raised.append([type(error).__name__, str(error)])
    found = {"raised": raised, "changed": changed(held, state_of(own.model))}
    torch.save(found, Path(folder) / "left.pt")
    os._exit(0)


CHECKS = {name: partial(failed, name) for name in NAMES}
