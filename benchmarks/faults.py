"""Faults on purpose: kills, flipped bits, cut files, edited plans, interrupts, threads, contexts.

Each is done many times, and every time what is left is one of four: whole (as before or as it
should be), refused (a ``SecateurError``), changed (other weights, or a model that is not as it
was, without a word), or raw (an error of Python's or torch's).  The last two must not be.

    python -m benchmarks.faults                          # a few minutes; results/faults.md
    python -m benchmarks.faults --only "kill*" --times 50
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from benchmarks.record import table, write
from secateur.errors import SecateurError
from tests.faults import edited, flipped, forge, kills, truncated
from tests.process.interrupts import drawn, interrupted

KINDS = ("whole", "refused", "changed", "raw")
Made = dict[str, Tensor]
Attempt = Callable[[], Made]


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*conv, nn.Linear(8 * 16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 36).reshape(2, 3, 6, 6)


def cut(seed: int, share: float) -> secateur.Result:
    return secateur.prune(net(seed), EXAMPLE, share, criterion="l2")


def contents(model: nn.Module) -> Made:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: Made, other: Made) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def judged(attempt: Attempt, *right: Made) -> str:
    """Return what came of an attempt, which should give one of some states."""
    try:
        found = attempt()
    except SecateurError:
        return "refused"
    except Exception:  # whatever it is: nobody was told what to do
        return "raw"
    return "whole" if any(equal(found, each) for each in right) else "changed"


def load(folder: Path) -> Made:
    return contents(secateur.load_pruned(folder, net(7)))


def kills_of_a_save(times: int, draw: random.Random) -> Iterator[str]:
    """Killed before any file call of a save over an older one; then the folder is loaded."""
    old, new = cut(0, 0.25), cut(1, 0.5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "small"
        old.save(folder)
        for _ in kills(partial(new.save, folder), folder):
            yield judged(partial(load, folder), contents(old.model), contents(new.model))
            old.save(folder)


def spoilt(
    spoil: Callable[[bytes, random.Random], bytes], times: int, draw: random.Random
) -> Iterator[str]:
    """Any file of a saved model is another."""
    result = cut(0, 0.5)
    for _ in range(times):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            result.save(folder)
            file = draw.choice(sorted(p for p in folder.iterdir() if p.is_file()))
            file.write_bytes(spoil(file.read_bytes(), draw))
            yield judged(partial(load, folder), contents(result.model))


def edited_plans(signed: bool, times: int, draw: random.Random) -> Iterator[str]:
    """One part of plan.json is another, with the digests of before or with its own, everywhere."""
    result = cut(0, 0.5)
    for _ in range(times):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            result.save(folder)
            plan = folder / "plan.json"
            less = 0 if signed else 0.1
            document = edited(json.loads(plan.read_text()), draw, less)
            plan.write_text(json.dumps(document))
            if signed and isinstance(document, dict):
                forge(folder, document)
            target = net(7)
            before = contents(target)
            found = judged(
                lambda f=folder, t=target: contents(secateur.load_pruned(f, t)),
                contents(result.model),
            )
            refused = found == "refused"
            yield "changed" if refused and not equal(contents(target), before) else found


def _pruner(model: nn.Module) -> secateur.Pruner:
    config = secateur.Config(sparsity=0.5, criterion="l2", schedule="linear", steps=2)
    return secateur.Pruner(model, config, EXAMPLE)


def edited_states(times: int, draw: random.Random) -> Iterator[str]:
    """One bit of a run that ``Pruner.save`` wrote is another; what refuses it is as it was."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run"
        pruner = _pruner(net())
        pruner.step()
        pruner.save(path)
        data = path.read_bytes()
        pruner.step()
        wanted = contents(pruner.finish().model)
        for _ in range(times):
            path.write_bytes(flipped(data, draw))
            model = net()
            again = _pruner(model)
            before = contents(model)

            def go_on(again: secateur.Pruner = again) -> Made:
                again.load(path)
                again.step()
                return contents(again.finish().model)

            found = judged(go_on, wanted)
            touched = found == "refused" and not equal(contents(model), before)
            yield "changed" if touched else found


def interrupts(
    job: Callable[[nn.Module], object], times: int, draw: random.Random
) -> Iterator[str]:
    """Ctrl-C at a drawn line: model, modes, hooks and random numbers are as before."""
    for moment in drawn(net, job, times, draw.randrange(1 << 30)):
        yield "whole" if interrupted(net, job, moment) == [] else "changed"


def prune_in_place(model: nn.Module) -> None:
    secateur.prune(model, EXAMPLE, 0.5, criterion="l2", inplace=True)


def prune_and_repair(model: nn.Module) -> None:
    batches = [EXAMPLE + i for i in range(4)]
    secateur.prune(model, EXAMPLE, 0.5, inplace=True, data=batches)


def threads(times: int, draw: random.Random) -> Iterator[str]:
    """Two models are pruned at once, and a third trains beside them."""
    wanted = contents(cut(0, 0.5).model)
    for _ in range(max(1, times // 10)):
        found: list[str] = []
        stop = threading.Event()
        trained = net(3).train()
        models = [net(0), net(0)]  # made here: a seed is the whole process's

        def train(
            stop: threading.Event = stop, model: nn.Module = trained, found: list[str] = found
        ) -> None:
            optimizer = torch.optim.SGD(model.parameters(), 0.01)
            try:
                while not stop.is_set():
                    optimizer.zero_grad()
                    model(EXAMPLE).square().mean().backward()
                    optimizer.step()
            except Exception:  # of a model that nobody prunes
                found.append("raw")

        def prune(model: nn.Module, found: list[str] = found) -> None:
            def cut_it() -> Made:
                return contents(secateur.prune(model, EXAMPLE, 0.5, criterion="l2").model)

            found.append(judged(cut_it, wanted))

        beside = threading.Thread(target=train)
        both = [threading.Thread(target=prune, args=(model,)) for model in models]
        for thread in (beside, *both):
            thread.start()
        for thread in both:
            thread.join()
        stop.set()
        beside.join()
        yield from found


def _default(setter: Callable[[Any], Any], value: Any, before: Any) -> AbstractContextManager[None]:
    class Default(nullcontext[None]):
        def __enter__(self) -> None:
            setter(value)

        def __exit__(self, *_: object) -> None:
            setter(before)

    return Default()


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "meta by default": lambda: torch.device("meta"),
    "float64 by default": lambda: _default(torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": lambda: _default(torch.use_deterministic_algorithms, True, False),
    "saved tensors on disk": lambda: torch.autograd.graph.save_on_cpu(),
}


def contexts(times: int, draw: random.Random) -> Iterator[str]:
    """Pruned within what somebody's program has switched on around it."""
    wanted = contents(cut(0, 0.5).model)
    for make in CONTEXTS.values():
        model = net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")

            def inside(make: Any = make, model: nn.Module = model) -> Made:
                with make():
                    return contents(secateur.prune(model, EXAMPLE, 0.5, criterion="l2").model)

            yield judged(inside, wanted)


FAULTS: dict[str, Callable[[int, random.Random], Iterator[str]]] = {
    "killed in a save over an older one": kills_of_a_save,
    "a flipped bit in a saved model": partial(spoilt, flipped),
    "a file of it cut short": partial(spoilt, truncated),
    "an edited plan": partial(edited_plans, False),
    "an edited plan with a digest of its own": partial(edited_plans, True),
    "a flipped bit in a saved run": edited_states,
    "interrupted while it prunes": partial(interrupts, prune_in_place),
    "interrupted while it repairs": partial(interrupts, prune_and_repair),
    "two threads, and one that trains": threads,
    "inside of other contexts": contexts,
}


def main() -> int:
    """Do all of it, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="a shell pattern")
    parser.add_argument("--times", type=int, default=200, help="of each; kills are at every call")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, int]] = {}
    for name, fault in FAULTS.items():
        if fnmatch(name, options.only):
            counted = Counter(fault(options.times, random.Random(options.seed)))
            found[name] = {kind: counted[kind] for kind in KINDS}
            print(name, found[name], flush=True)
    rows = [[name, *(str(row[kind]) for kind in KINDS)] for name, row in found.items()]
    text = (
        "Whole: what is left is all of what was, or of what should be. Refused: an error of "
        "secateur's own, and nothing has changed. Changed and raw must not be: other weights or "
        "another model without a word, and errors of Python's or torch's."
    )
    write("faults", "What was tried", found, f"{text}\n\n{table(['', *KINDS], rows)}")
    return 0 if not any(row["changed"] + row["raw"] for row in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
