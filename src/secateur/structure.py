"""``analyze``: what can be removed from a model, what goes with it, and why the rest cannot go."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Set
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from rich.console import ConsoleOptions, RenderableType
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from .errors import UnknownNameError, did_you_mean
from .graph.axes import Atom, Axis
from .graph.blocks import Block, find_blocks
from .graph.choices import forbidden
from .graph.cost import Cost, cost, human, macs
from .graph.groups import Group, find_groups
from .graph.infer import Inferred
from .graph.kinds import attention_heads
from .graph.macs import uncounted
from .graph.record import record
from .graph.shown import alike, factors, starred, together
from .graph.typing import Reason, Typed
from .runtime.forbidding import Forbidden
from .runtime.model import check_model
from .runtime.ordinary import in_ordinary_mode
from .runtime.progress import during
from .runtime.shown import Shown
from .types import Example


class Structure(Shown):
    """The dependency groups of a model.

    Attributes:
        groups: those that may be pruned, in the order in which the model uses them.
        frozen: those that may not, each with its reason.
        blocks: residual blocks, which can be dropped whole.
        unknown: operations without a rule, with the place of the first; what they touch is frozen.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> structure = analyze(net, torch.zeros(1, 8))
    >>> structure
    Structure(Sequential: 1 groups, 2 frozen)
    >>> structure["0"].size, structure.cost({"0": 8}).params
    (16, 108)

    See also:
        ``analyze``, which makes one; ``Plan``, which says what to keep of each group.
    """

    text_width: ClassVar[int] = 140

    def __init__(self, model: str, inferred: Inferred):
        self.model = model
        self.inferred = inferred
        free, frozen = find_groups(inferred)
        self.groups: tuple[Group, ...] = tuple(free)
        self.frozen: tuple[Group, ...] = tuple(frozen)
        self.unknown: dict[str, Reason] = inferred.unknown
        self.unread: tuple[str, ...] = inferred.recording.unread()
        self.blocks: tuple[Block, ...] = tuple(find_blocks(inferred))
        self._by_name = {g.name: g for g in (*free, *frozen)}
        self._by_atom = {id(g.atom): g for g in free}

    def __getitem__(self, name: str) -> Group:
        try:
            return self._by_name[name]
        except KeyError:
            hint = did_you_mean(name, self._by_name)
            raise UnknownNameError(f"{self.model} has no group {name!r}.{hint}") from None

    @property
    def notes(self) -> list[str]:
        """What a user should know: which parameters the example tells nothing about."""
        found = []
        if failed := self.inferred.recording.failed:
            found.append(f"what only training reads is not known: that forward fails ({failed})")
        if self.unread:
            names = ", ".join(self.unread[:3])
            more = f" and {len(self.unread) - 3} more" if len(self.unread) > 3 else ""
            found.append(
                f"the example never reads {names}{more}: they keep their sizes, and so does what "
                "may feed a module that is not read at all"
            )
        return found

    @property
    def exact(self) -> tuple[Group, ...]:
        """The groups whose removal changes nothing but the size."""
        return tuple(g for g in self.groups if g.exact)

    def tensor(self, name: str) -> Typed:
        """Return the type of a parameter or buffer by its name (any of its names, when tied)."""
        r = self.inferred.recording
        name = r.names.get(name, name)
        value = r.parameters.get(name, r.buffers.get(name))
        if value is None or value not in self.inferred.types:
            hint = did_you_mean(name, r.names)
            raise UnknownNameError(f"{self.model} has no tensor {name!r}.{hint}")
        return self.inferred.types[value]

    def family(self, axis: Axis) -> frozenset[str] | None:
        """Return the groups that keep as many positions as the free atom ``axis``, it included."""
        group = self._by_atom.get(id(axis))
        return frozenset({group.name, *group.sized}) if group else None

    def independent(
        self, *, inexact: bool = False, grid: str = "auto", among: Set[str] | None = None
    ) -> tuple[Group, ...]:
        """Return groups of which no two share a grid, so that a share of each is a share of all.

        Of heads and their widths, or convolution groups and their channels, one is chosen, an exact
        one before an inexact one.  Groups that must keep equally many positions are chosen
        together.

        Args:
            inexact: choose those whose removal is inexact, too.
            grid: "fine", what has more positions; "coarse", that whose positions take more
                parameters with them; "auto", whole heads of attention, and elsewhere as "fine".
            among: names, which alone are chosen.
        """
        heads: Set[str] = frozenset()
        if grid == "auto":
            heads = attention_heads(self.inferred, self.groups)

        def rank(group: Group) -> tuple[bool, bool, int]:
            large = group.params if grid == "coarse" else group.size
            return not group.exact, group.name not in heads, -large

        order = sorted(self.groups, key=rank)
        chosen: set[str] = set()
        for group in order:
            family = [group, *(self[name] for name in group.sized)]
            if among is not None and not among & {g.name for g in family}:
                continue
            if all((g.exact or inexact) and g.size > 1 for g in family):
                names = {g.name for g in family}
                if not (chosen - names) & {mate for g in family for mate in g.grid}:
                    chosen |= names
        return tuple(g for g in self.groups if g.name in chosen)

    def cost(self, keep: Mapping[str, int] | Any = None) -> Cost:
        """Return parameters, MACs and peak activation bytes, without running the model.

        Args:
            keep: group name → how many positions it keeps, or a ``Plan``; None is the whole model.
        """
        whole, count = cost(self.inferred, self.counter(keep)), self.counter(keep)
        gone = [self.block(name).cost(self.inferred, count) for name in getattr(keep, "drop", ())]
        params, macs = sum(g[0] for g in gone), sum(g[1] for g in gone)
        return replace(whole, params=whole.params - params, macs=whole.macs - macs)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """The operations that ran whose multiply-accumulates no cost counts."""
        return uncounted(self.inferred.recording.ops, self.unknown)

    def block(self, name: str) -> Block:
        """Return a residual block by its name."""
        found = {block.name: block for block in self.blocks}
        if name not in found:
            hint = did_you_mean(name, found)
            raise UnknownNameError(
                f"{name!r} is no block of {self.model}: no module that returns its input plus "
                "something and nothing else, and none of several layers alike that hand their "
                f"outputs on (leave a cache out of the example).{hint}"
            )
        return found[name]

    def forbidden(self, name: str, keep: Tensor) -> list[Forbidden]:
        """Return where a router must not choose what goes of a group; ``keep`` is bool."""
        return list(forbidden(self.inferred, self[name].atom, keep))

    def counter(self, keep: Mapping[str, int] | Any = None) -> Callable[[Atom], int]:
        """Return the function atom → positions kept, which the symbolic costs are computed from."""
        if keep is None:
            return lambda atom: atom.size
        counts = keep if isinstance(keep, Mapping) else keep.counts
        left = {id(self[name].atom): count for name, count in counts.items()}
        for key, count in list(left.items()):
            left |= dict.fromkeys(self._followers.get(key, ()), count)
        return lambda atom: left.get(id(atom), atom.size)

    @cached_property
    def _followers(self) -> dict[int, list[int]]:
        """The axes without a group, of tensors that the code makes, that are as long as a group."""
        found: dict[int, list[int]] = {}
        for tied in self.inferred.sizing.classes():
            others = [id(atom) for atom in tied if id(atom) not in self._by_atom]
            found |= {id(atom): others for atom in tied if others and id(atom) in self._by_atom}
        return found

    def macs_per_index(self, group: Group) -> float:
        """Return the MACs that one position of a group takes with it, on the recorded inputs."""
        one_less = macs(self.inferred, lambda a: a.size - (a is group.atom))
        return macs(self.inferred, lambda a: a.size) - one_less

    def explain(self, tensor: str, dim: int) -> str:
        """Say what one dimension of a parameter or buffer is made of, and what may be removed."""
        typed = self.tensor(tensor)
        lines = [f"{tensor} dim {dim}: {typed[dim].axis!r}"]
        from .graph.axes import atoms

        for atom in atoms(typed[dim].axis):
            group = self._by_atom.get(id(atom))
            lines.append(f"  {group}" if group else f"  {atom.size} frozen: {atom.frozen}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Structure({self.model}: {len(self.groups)} groups, {len(self.frozen)} frozen)"

    def rows(self, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._table(options.max_width)
        if self.uncounted:
            yield f"[yellow]not in the MACs[/]: {', '.join(self.uncounted)}"
        if self.blocks:
            blocks = alike(self.blocks, lambda b: b.name, lambda b: (b.params, b.exact))
            names = ", ".join(f"{kind} ({human(b.params)} params)" for kind, b in blocks[:4])
            yield f"can be dropped whole: {escape(names)}{' …' if len(blocks) > 4 else ''}"
        for note in self.notes:
            yield f"[yellow]note[/] {escape(note)}"
        reasons: dict[str, list[Group]] = {}
        for g in self.frozen:
            reasons.setdefault(starred(g.frozen.why if g.frozen else ""), []).append(g)
        for why, groups in reasons.items():
            kinds = alike(groups, lambda g: g.name, lambda g: g.size)
            names = ", ".join(f"{kind} ({g.size})" for kind, g in kinds[:4])
            more = " …" if len(kinds) > 4 else ""
            if len(groups) == 1 and groups[0].frozen:
                why = groups[0].frozen.why
            yield f"[dim]frozen[/] {escape(names)}{more}: {escape(why)}"

    def _table(self, width: int) -> Table:
        def factor(group: Group) -> str:
            return factors(group, self.tensor(group.members[0].tensor))

        def same(group: Group) -> Hashable:
            said = starred(_removal(group)), together(group), factor(group)
            return group.size, group.params, self.macs_per_index(group), said

        kinds = alike(self.groups, lambda g: g.name, same)
        table = Table(title=f"{self.model}: {self.cost()}", title_justify="left")
        longest = max((len(str(kind)) for kind, _ in kinds), default=0)  # names must not look alike
        table.add_column("group", overflow="fold", min_width=min(longest, width // 5))
        table.add_column("size", justify="right")
        table.add_column("what goes with one", overflow="fold")
        table.add_column("params", justify="right")
        table.add_column("MACs", justify="right")
        table.add_column("removal", overflow="fold")
        for kind, g in kinds:
            of = f"\n[dim]of {escape(factor(g))}[/]" if factor(g) else ""
            numbers = human(g.params), human(self.macs_per_index(g))
            row = escape(str(kind)), str(g.size), escape(together(g)) + of, *numbers
            table.add_row(*row, _removal(g) if kind.count == 1 else starred(_removal(g)))
        return table


def _removal(group: Group) -> str:
    said = "exact" if group.exact else f"[yellow]inexact[/]: {escape(str(group.inexact))}"
    if group.sized:
        others = f" and {len(group.sized) - 1} more" if len(group.sized) > 1 else ""
        said += f"; as many as {escape(_tail(group.sized[0]))}{others}"
    return said


def _tail(name: str) -> str:
    """Return the end of a dotted name that a person recognises."""
    return ".".join(name.split(".")[-2:])


@in_ordinary_mode
def analyze(model: nn.Module, example_inputs: Example, *, ragged: bool = False) -> Structure:
    """Infer what can be removed from a model from the operations of one forward.

    The model's parameters, buffers, modes and attributes are as before afterwards, also when its
    forward fails.  A model on ``torch.device("meta")`` is analysed without weights.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        ragged: let each group of a grouped convolution keep channels of its own, equally many.
            By default groups go as a whole, or channels at the same place of all groups.

    Returns:
        The structure; print it.

    Raises:
        ModelError: it is no module, or one whose weights have no shapes yet.
        TraceError: the forward failed on the example inputs.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> structure = analyze(net, torch.zeros(2, 8))
    >>> [(g.name, g.size, g.exact) for g in structure.groups]
    [('0', 16, True)]
    >>> structure.cost({"0": 8}).params
    108
    >>> print(structure.explain("2.weight", 0))
    2.weight dim 0: 4
      4 frozen: it is the model's output (aten.addmm.default in '2')
    """
    check_model(model)
    with during("analysing"):
        inferred = Inferred(record(model, example_inputs), ragged=ragged)
        return Structure(type(model).__name__, inferred)
