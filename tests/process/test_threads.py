"""What one thread prunes is nothing to another: neither to its pruning nor to its training."""

from __future__ import annotations

import copy
import logging
import random
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import has_torch_function

import secateur as sc
from secateur.runtime import claims
from secateur.runtime.forward import evaluating
from secateur.runtime.quiet import quiet

from .process import changed, process_state


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.inner, self.outer = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.outer(torch.relu(self.inner(self.norm(x))) * torch.ones(()))


def blocks() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(Block(), Block(), nn.Linear(16, 4)), torch.ones(2, 5, 16)


def layer() -> tuple[nn.Module, torch.Tensor]:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.ones(2, 5, 16)


def convolutions() -> tuple[nn.Module, torch.Tensor]:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    return net, torch.ones(2, 3, 8, 8)


def decided(model: nn.Module, x: torch.Tensor) -> Any:
    """Return the names of blocks and groups, and what a prune keeps of each."""
    structure = sc.analyze(model, x)
    plan = sc.prune(model, x, 0.5).plan
    return [b.name for b in structure.blocks], [g.name for g in structure.groups], plan.keep


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Return what functions return, or raise, that run at once in threads of their own."""
    found: list[Any] = [None] * len(functions)
    start = threading.Barrier(len(functions))

    def run(place: int) -> None:
        start.wait()
        try:
            found[place] = functions[place]()
        except BaseException as error:  # it is compared with what was expected
            found[place] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def train(steps: int, seed: int = 5) -> list[float]:
    """Return the losses of a training that draws from the process's generators."""
    net = blocks()[0]
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(
                torch.linspace(-0.3, 0.2 + i / 50, parameter.numel()).view_as(parameter)
            )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    random.seed(seed)
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = (net(torch.rand(4, 5, 16)) * random.random()).square().mean()
        assert loss.dtype == torch.float32
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("second", [blocks, layer, convolutions])
def test_two_threads_when_both_prune_then_each_has_the_plan_that_it_has_alone(second: Any) -> None:
    pairs = [blocks(), second()]
    alone = [decided(*pair) for pair in pairs]
    before = process_state()
    assert together(*(lambda p=p: decided(*p) for p in pairs)) == alone
    assert changed(before, process_state()) == []


@pytest.mark.parametrize("build", [blocks, layer, convolutions])
def test_training_when_another_thread_prunes_then_both_are_as_alone(build: Any) -> None:
    pair = build()
    expected, losses = decided(*pair), train(60)
    found = together(lambda: [decided(*pair) for _ in range(2)], lambda: train(60))
    assert found == [[expected] * 2, losses]


def test_trial_when_another_thread_makes_tensors_then_they_are_of_its_own_type() -> None:
    from secateur.runtime.precise import Precisely

    with Precisely(torch.float64):
        here, (there,) = torch.zeros(2), together(lambda: torch.zeros(2))
    assert (here.dtype, there.dtype) == (torch.float64, torch.float32)


def inplace(model: nn.Module, x: torch.Tensor) -> sc.Result:
    return sc.prune(model, x, 0.5, inplace=True)


def copied(model: nn.Module, x: torch.Tensor) -> sc.Result:
    return sc.prune(model, x, 0.5)


def computed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("build", [blocks, layer, convolutions])
@pytest.mark.parametrize("ways", [(inplace, inplace), (copied, copied), (copied, inplace)])
def test_two_threads_when_they_prune_one_model_then_it_is_as_one_after_the_other(
    build: Any, ways: Any
) -> None:
    model, x = build()
    orders = []
    for order in (ways, ways[::-1]):
        twin = copy.deepcopy(model)
        orders.append({way.__name__: computed(way(twin, x).model, x) for way in order})
    sys.setswitchinterval(1e-4)
    try:
        found = together(*(lambda w=way: (w.__name__, w(model, x)) for way in ways))
    finally:
        sys.setswitchinterval(0.005)
    assert claims._claims == {}
    now = [(name, computed(result.model, x)) for name, result in found]
    assert any(all(torch.equal(out, order[name]) for name, out in now) for order in orders)


def test_claim_when_a_part_is_anothers_then_it_waits_and_two_that_cross_are_told() -> None:
    one, two = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    inside, met = threading.Event(), threading.Barrier(2, timeout=60)

    def parts() -> str:
        with claims.claimed(one[0]):
            inside.set()
            assert len(claims._claims) == 1
            return "first"

    def crossing(mine: nn.Module, others: nn.Module) -> str:
        try:
            with claims.claimed(mine):
                met.wait()
                with claims.claimed(others):
                    return "both"
        except sc.errors.ModelError:
            return "refused"

    def whole() -> str:
        inside.wait()
        with claims.claimed(one):
            return "second"

    assert together(whole, parts) == ["second", "first"]
    found = together(lambda: crossing(one, two), lambda: crossing(two, one))
    assert "refused" in found
    assert claims._claims == {}


def test_trial_when_another_thread_serves_then_its_fast_path_and_warnings_are_its_own() -> None:
    def there() -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("of a server", stacklevel=1)
        return has_torch_function((torch.ones(2),)), len(caught)  # what the fast path asks

    before = list(warnings.filters)
    model = layer()[0].eval()
    with quiet(), evaluating(model):
        warnings.warn("of a trial", stacklevel=1)
        assert has_torch_function((torch.ones(2),))
        assert together(there) == [(False, 1)]
    assert warnings.filters == before
    assert not has_torch_function((torch.ones(2),))


@pytest.mark.parametrize("own_handler", [False, True])
def test_quiet_when_another_thread_logs_then_its_records_alone_are_shown(own_handler: bool) -> None:
    shown: list[str] = []

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    logger = logging.Logger("a library") if own_handler else logging.getLogger("no such library")
    holder, handler = (logger if own_handler else logging.root), Shown()
    before = [list(h.filters) for h in logging.root.handlers]
    holder.addHandler(handler)
    if own_handler:  # as known as any other
        logging.root.manager.loggerDict["a library"] = logger
    try:
        with quiet():
            logger.warning("of a trial")
            together(lambda: logger.warning("of a server"))
        logger.warning("of nobody")
    finally:
        holder.removeHandler(handler)
        logging.root.manager.loggerDict.pop("a library", None)
    assert shown == ["of a server", "of nobody"]
    assert handler.filters == []
    assert [list(h.filters) for h in logging.root.handlers] == before


def test_quiet_when_another_thread_catches_warnings_across_its_end_then_nothing_is_left() -> None:
    before = list(warnings.filters)
    begun, over = threading.Event(), threading.Event()

    def across() -> None:
        with warnings.catch_warnings():
            begun.set()
            over.wait()

    thread = threading.Thread(target=across)
    with quiet():
        thread.start()
        begun.wait()
    over.set()
    thread.join()
    assert warnings.filters == before
