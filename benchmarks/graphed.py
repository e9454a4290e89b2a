"""Training on a device alone: images, batches and rates stay there, a step is one CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import distillation_loss
from secateur.fitting.deadline import rate

RATE, MOMENTUM, DECAY = 0.02, 0.9, 5e-4


class Images:
    """Training images on a device, with the usual augmentation of each for itself."""

    def __init__(self, images: Tensor, labels: Tensor, size: int):
        self.padded, self.labels, self.size = F.pad(images, (4, 4, 4, 4)), labels, size
        self._place = torch.arange(32, device=labels.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return random images and labels; no number leaves the device."""
        device, n = self.labels.device, self.size
        index = torch.randint(len(self.labels), (n,), device=device)
        top, left = torch.randint(0, 9, (2, n, 1), device=device)
        flipped = torch.rand(n, 1, device=device) < 0.5
        columns = left + torch.where(flipped, 31 - self._place, self._place)
        rows = (top + self._place)[:, None, :, None]
        channels = torch.arange(3, device=device)[None, :, None, None]
        x = self.padded[index[:, None, None, None], channels, rows, columns[:, None, None, :]]
        return x, self.labels[index]

    def stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches without end."""
        while True:
            yield self.batch()


class SGD(torch.optim.Optimizer):
    """SGD with Nesterov's momentum; ``share`` of the rate is on the device, for a graph to read."""

    def __init__(self, parameters: list[nn.Parameter]):
        super().__init__(parameters, {"lr": RATE})
        self.share = torch.ones((), device=parameters[0].device)
        for parameter in parameters:
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            moved = [self.state[p]["momentum_buffer"] for p in moving]
            steps = torch._foreach_add([p.grad for p in moving], moving, alpha=DECAY)
            torch._foreach_mul_(moved, MOMENTUM)
            torch._foreach_add_(moved, steps)
            torch._foreach_add_(steps, moved, alpha=MOMENTUM)
            torch._foreach_mul_(steps, self.share * group["lr"])
            torch._foreach_sub_(moving, steps)


@dataclass
class Clock:
    """The time that a row has, from now on."""

    seconds: float

    def __post_init__(self) -> None:
        self._begun = time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self._begun

    @property
    def progress(self) -> float:
        return self.spent / self.seconds


class Loop:
    """Training until a share of the time is over, on a GPU as one graph for each step."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        images: Images,
        clock: Clock,
        graphed: bool = True,
    ):
        self.model, self.teacher, self.images, self.clock = model, teacher, images, clock
        self.graphed = graphed and images.labels.is_cuda
        self.penalise: Callable[[], object] | None = None
        self.steps = 0
        self.start()

    def start(self) -> None:
        """Begin anew with the optimizer: the parameters are others."""
        self.optimizer = SGD(list(self.model.parameters()))
        self._graph: torch.cuda.CUDAGraph | None = None

    def capture(self) -> None:
        """Make a graph of the step as it is now; its first steps are made as usual."""
        self._graph = None
        if not self.graphed or self.penalise is not None:
            return
        self.model.train()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        self.steps += 3
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self._step()
        self._graph = graph

    def until(self, progress: float) -> None:
        """Train until so much of the time is over; one step is always made."""
        self.model.train()
        last = self.steps
        while (now := self.clock.progress) < progress or self.steps == last:
            self.optimizer.share.fill_(rate(now))
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
            self.steps += 1
            if self.steps % 20 == 0 and self.optimizer.share.is_cuda:
                torch.cuda.synchronize()  # the clock is that of what was done, not of what waits

    def _step(self) -> None:
        x, labels = self.images.batch()
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.model(x)
        loss = F.cross_entropy(logits, labels)
        if self.teacher is not None:
            with torch.no_grad():
                told = self.teacher(x)
            loss = 0.1 * loss + 0.9 * distillation_loss(logits, told, 4.0)
        loss.backward()
        if self.penalise is not None:
            self.penalise()
        self.optimizer.step()
