"""A program: blocks from the tables, joined at random.  It is data, so it can be made shorter.

``Program.drawn(seed)`` is the same program on every machine; ``model`` builds it with weights of
which no two of one tensor are equal, so that the judge finds each again by its value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import attentions, channels, features, habits, layers, sequences, tokens  # noqa: F401
from .draw import Draw, maps, sames
from .joins import BRIDGES, JOINS, Chain, bridge, project


@dataclass(frozen=True)
class Node:
    """A block of a table, or a join of chains of blocks."""

    name: str
    seed: int
    inner: tuple[tuple[Node, ...], ...] = ()

    def plain(self) -> list[Any]:
        chains = [[node.plain() for node in chain] for chain in self.inner]
        return [self.name, self.seed, *([chains] if chains else [])]

    @classmethod
    def read(cls, plain: list[Any]) -> Node:
        name, seed, *chains = plain
        inner = chains[0] if chains else []
        return cls(name, seed, tuple(tuple(map(cls.read, chain)) for chain in inner))


@dataclass(frozen=True)
class Program:
    """Chains of blocks, each in its world, with a bridge between each two.

    Attributes:
        stages: (world, nodes); the bridge to the next world is drawn from ``seed``.
        way: how it is pruned, a name in ``ways.WAYS``.
    """

    seed: int
    stages: tuple[tuple[str, tuple[Node, ...]], ...]
    way: str

    @classmethod
    def drawn(cls, seed: int, ways: tuple[str, ...]) -> Program:
        d = Draw(f"program {seed}")
        world = d.pick("image", "image", "signal", "sequence", "sequence", "vector", "graph")
        stages = [(world, nodes(d, world, d.pick(1, 2, 3, 4)))]
        while (
            d.chance(0.35)
            and len(stages) < 3
            and (further := [b for a, b in BRIDGES if a == world])
        ):
            world = d.choice(further)
            stages.append((world, nodes(d, world, d.pick(1, 2))))
        return cls(seed, tuple(stages), d.pick(*ways))

    def __str__(self) -> str:
        stages = [[world, [node.plain() for node in chain]] for world, chain in self.stages]
        return json.dumps([self.seed, stages, self.way])

    @classmethod
    def read(cls, text: str) -> Program:
        seed, stages, way = json.loads(text)
        chains = tuple((world, tuple(map(Node.read, chain))) for world, chain in stages)
        return cls(seed, chains, way)

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        model = Model(self)
        scatter(model, self.seed)
        return model.eval()

    def inputs(self, size: int) -> tuple[Tensor, ...]:
        """Return what the model is called with; 0 is the example, others have other sizes."""
        d = Draw(f"inputs {self.seed}")
        world, asks_ids = self.stages[0][0], d.chance()
        generator = torch.Generator().manual_seed(size)
        first, *others = d.sample(SIZES[world], len(SIZES[world]))
        shape = [first, *others][size]
        if world == "sequence" and asks_ids:
            return (torch.randint(0, 11, shape[:2], generator=generator),)
        x = torch.randn(shape, generator=generator)
        if world != "graph":
            return (x,)
        nodes = shape[0]
        edges = torch.randint(0, nodes, (2, 2 * nodes), generator=generator)
        return x, torch.cat([edges, torch.arange(nodes).expand(2, -1)], 1)

    @property
    def sizes(self) -> int:
        return len(SIZES[self.stages[0][0]])


SIZES: dict[str, list[tuple[int, ...]]] = {
    "image": [(2, 3, 8, 8), (1, 3, 8, 8), (3, 3, 12, 8), (2, 3, 8, 16)],
    "signal": [(2, 2, 8), (1, 2, 8), (3, 2, 12), (2, 2, 16)],
    "sequence": [(2, 6, 5), (1, 6, 5), (3, 4, 5), (2, 11, 5), (2, 16, 5)],
    "vector": [(4, 5), (1, 5), (7, 5)],
    "graph": [(7, 5), (5, 5), (12, 5)],
}


def nodes(d: Draw, world: str, count: int, depth: int = 0) -> tuple[Node, ...]:
    found = []
    for _ in range(count):
        seed = d.randrange(1_000_000)
        if depth < 2 and d.chance(0.3):
            join = d.choice(list(JOINS))
            chains = [
                nodes(d, world, d.pick(1, 1, 2), depth + 1) for _ in range(JOINS[join].chains)
            ]
            found.append(Node(join, seed, tuple(chains)))
        else:
            table = maps if d.chance(0.55) else sames
            found.append(Node(d.choice(list(table.of[world])), seed))
    return tuple(found)


def build(chain: tuple[Node, ...], world: str, c: int, o: int | None) -> tuple[Chain, int]:
    """Return the modules of a chain, and the channels that come out: ``o``, if that is asked."""
    made: list[nn.Module] = []
    for i, node in enumerate(chain):
        d = Draw(f"{node.name} {node.seed}", world)
        last = i == len(chain) - 1
        target = o if o and last else d.width()
        if node.name in JOINS:
            module, c = JOINS[node.name](
                d, c, [lambda c, o, n=n: build(n, world, c, o) for n in node.inner]
            )
        elif node.name in maps.of[world]:
            module, c = maps.of[world][node.name](d, c, target), target
        else:
            module = sames.of[world][node.name](d, c, c)
        made.append(module)
    if o and c != o:
        made.append(project(Draw("project", world), c, o))
        c = o
    return Chain(made), c


class Model(nn.Module):
    def __init__(self, program: Program):
        super().__init__()
        d = Draw(f"model {program.seed}")
        first = program.stages[0][0]
        c = d.width()
        kinds = {"image": nn.Conv2d(3, c, 3, padding=1), "signal": nn.Conv1d(2, c, 3, padding=1)}
        asks_ids = not program.inputs(0)[0].is_floating_point()
        self.stem = nn.Embedding(11, c) if asks_ids else kinds.get(first, nn.Linear(5, c))
        made: list[nn.Module] = []
        for i, (world, chain) in enumerate(program.stages):
            if i:
                between, c = bridge(
                    Draw(f"bridge {program.seed} {i}"), program.stages[i - 1][0], world, c
                )
                made.append(between)
            steps, c = build(chain, world, c, None)
            made.append(steps)
        self.steps = nn.ModuleList(made)
        self.head, self.ends = head(Draw(f"head {program.seed}", world), c)

    def forward(self, x: Tensor, *rest: Tensor) -> Any:
        x = self.stem(x)
        for step in self.steps:
            x = step(x, *rest)
        y = self.head(x)
        return {"y": (y, x.sum(self.ends))} if self.ends is not None else y


def head(d: Draw, c: int) -> tuple[nn.Module, int | None]:
    """Return what makes the output, and the channels' dimension if they are summed for another."""
    kinds = {"image": nn.Conv2d(c, 3, 1), "signal": nn.Conv1d(c, 3, 1)}
    return kinds.get(d.world, nn.Linear(c, 3)), d.pick(None, None, None, d.channel)


def scatter(model: nn.Module, seed: int) -> None:
    """Give each tensor values of which no two are equal and none is zero, of a usual size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(spread(p, generator) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
            if p.ndim == 1 and name.endswith("weight"):
                p.add_(1)
        for name, b in model.named_buffers():
            last = name.rsplit(".", 1)[-1]
            if last.startswith("running_"):
                found = spread(b, generator)
                b.copy_(found.abs() + 0.3 if last == "running_var" else found * 0.3)


def spread(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return quantiles of the normal distribution in a random order."""
    order = torch.randperm(like.numel(), generator=generator, dtype=torch.float64)
    return torch.special.ndtri((order + 0.3) / like.numel()).view(like.shape).to(like)
