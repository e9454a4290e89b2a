"""Tables of which the example reads a part: what another length reads is not cut.

Each form is a model whose forward reads as much of a parameter or buffer as its input is long.  It
is cut on one length, half of every exact group, and judged on others against a masked copy of the
dense model that is made here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.shrinking import Plan, cut_and_verify, group_masks
from secateur.structure import Structure, analyze

ROWS, WIDTH = 24, 6


class Model(nn.Module):
    """Whatever a form makes of its input, and an MLP whose hidden units can be cut."""

    def __init__(self, read: Callable[[Any, Tensor], Tensor], held: dict[str, Any]):
        super().__init__()
        self.read, self.rows = read, ROWS
        self.up, self.down = nn.Linear(WIDTH, 10), nn.Linear(10, WIDTH)
        for name, value in held.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        x = self.read(self, x)
        return x + self.down(self.up(x).relu())


@dataclass
class Form:
    """How a table is read; ``held`` makes what the model holds besides its MLP."""

    read: Callable[[Any, Tensor], Tensor]
    held: Callable[[], dict[str, Any]]
    length: int = 7
    others: tuple[int, ...] = (3, 12, ROWS)
    shape: Callable[[int], tuple[int, ...]] = field(default=lambda n: (2, n, WIDTH))


def new(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def added(read: Callable[[Any, Tensor, int], Tensor], *shape: int, **more: Any) -> Form:
    """The table ``m.t``: what is read of it is added to the input."""
    return Form(
        lambda m, x: x + read(m, x, x.shape[1]),
        lambda: {"t": new(*(shape or (1, ROWS, WIDTH)))},
        **more,
    )


def summed(read: Callable[[Any, Tensor, int], Tensor], **more: Any) -> Form:
    """The table's rows are added up, so that no axis of the input's says how many there are."""
    return Form(lambda m, x: x * read(m, x, x.shape[1]), lambda: {"t": new(ROWS, WIDTH)}, **more)


def picture(read: Callable[[Any, Tensor, int, int], Tensor], held: Any, **more: Any) -> Form:
    """Channels first; the table is added to the picture with its channels last."""
    return Form(
        lambda m, x: x.permute(0, 2, 3, 1) + read(m, x, *x.shape[2:]),
        held,
        **{"shape": lambda n: (2, WIDTH, n, n + 1), "others": (3, 12), **more},
    )


def mixed(weights: Callable[[Any, Tensor, int], Tensor], held: Any, **more: Any) -> Form:
    """Positions are mixed by weights (length, length)."""
    return Form(lambda m, x: weights(m, x, x.shape[1]) @ x, held, **more)


def kernel(taps: Callable[[Any, int], Tensor], *shape: int) -> Form:
    """A causal convolution with as many taps as there are positions."""

    def read(m: Any, x: Tensor) -> Tensor:
        weight, padded = taps(m, x.shape[1]), F.pad(x.transpose(1, 2), (x.shape[1] - 1, 0))
        return F.conv1d(padded, weight, groups=WIDTH // weight.shape[1]).transpose(1, 2)

    return Form(read, lambda: {"t": new(*shape)})


def scores(x: Tensor) -> Tensor:
    return x @ x.transpose(1, 2)


def generated() -> dict[str, Any]:
    """Weights for each position that a layer computes from the token (Synthesizer)."""
    return {"q": nn.Linear(WIDTH, 8), "r": nn.Linear(8, ROWS)}


def continuous() -> dict[str, Any]:
    """A table that an MLP computes from coordinates."""
    return {"q": nn.Linear(2, 8), "r": nn.Linear(8, WIDTH), "at": torch.randn(ROWS, 2)}


def crosswise(m: Any, x: Tensor, height: int, width: int) -> Tensor:
    columns = m.columns[:width].unsqueeze(0).repeat(height, 1, 1)
    return torch.cat([columns, m.rows_[:height].unsqueeze(1).repeat(1, width, 1)], -1)


def middle(m: Any, x: Tensor, height: int, width: int) -> Tensor:
    top, left = (m.rows - height) // 2, (m.rows - width) // 2
    return m.t[:, top : top + height, left : left + width]


def framed(m: Any, x: Tensor) -> Tensor:
    padded = F.pad(x, (0, 0, 0, m.rows - x.shape[1])) + m.t
    return (padded @ (padded.transpose(1, 2) @ padded))[:, : x.shape[1]]


def written(m: Any, x: Tensor) -> Tensor:
    whole = x.new_zeros(len(x), m.rows, WIDTH)
    whole[:, : x.shape[1]] = x
    return x + (whole * m.t).sum(1, keepdim=True)


def remembered(m: Any, x: Tensor) -> Tensor:
    m.length = x.shape[1]
    return x + m.t[:, : m.length]


def joined(m: Any, x: Tensor) -> Tensor:
    both = torch.cat([m.first.expand(len(x), -1, -1), x], 1)
    return both + m.t[:, : both.shape[1]]


FULL = {"length": ROWS, "others": (3, 7, 12)}
SHORT = {"length": 6, "others": (3, 4, 8, 12)}
SQUARE = {"shape": lambda n: (2, WIDTH, n, n), "others": (3, 12, ROWS)}
FORMS = {
    "slice": added(lambda m, x, n: m.t[:, :n]),
    "slice-of-one": added(lambda m, x, n: m.t[:, :n], length=1),
    "size": added(lambda m, x, n: m.t[:, : x.size(1)]),
    "len": added(lambda m, x, n: m.t[:, : len(x[0])]),
    "int": added(lambda m, x, n: m.t[:, : int(n)]),
    "item": added(lambda m, x, n: m.t[:, : int((x[0, :, 0] == x[0, :, 0]).sum())]),
    "tensor": added(lambda m, x, n: m.t[:, : (x[0, :, 0] == x[0, :, 0]).sum()]),
    "numel": added(lambda m, x, n: m.t[:, : x.numel() // (WIDTH * len(x))]),
    "min": added(lambda m, x, n: m.t[:, : min(n, m.rows)]),
    "attribute-of-the-input": Form(remembered, lambda: {"t": new(1, ROWS, WIDTH)}),
    "narrow": added(lambda m, x, n: m.t.narrow(1, 0, n)),
    "narrow-offset": added(lambda m, x, n: m.t.narrow(1, 2, n), others=(3, 12, 22)),
    "offset": added(lambda m, x, n: m.t[:, 2 : n + 2], others=(3, 12, 22)),
    "end": added(lambda m, x, n: m.t[:, -n:]),
    "end-by-difference": added(lambda m, x, n: m.t[:, m.rows - n :]),
    "split": added(lambda m, x, n: m.t.split([n, m.rows - n], 1)[0], others=(3, 12)),
    "split-size": added(lambda m, x, n: m.t.split(n, 1)[0], others=(3, 12)),
    "arange": added(lambda m, x, n: m.t[:, torch.arange(n)]),
    "index-select": added(lambda m, x, n: m.t.index_select(1, torch.arange(n))),
    "mask-of-rows": added(lambda m, x, n: m.t[:, torch.arange(m.rows) < n]),
    "transposed": added(lambda m, x, n: m.t.transpose(1, 2)[:, :n], 1, WIDTH, ROWS),
    "expanded": added(lambda m, x, n: m.t.expand(len(x), -1, -1)[:, :n]),
    "computed-from": added(lambda m, x, n: (m.t * 2 + 1).tanh()[:, :n]),
    "normalised": added(lambda m, x, n: F.layer_norm(m.t, (WIDTH,))[:, :n]),
    "normalised-over-rows": added(lambda m, x, n: F.normalize(m.t, dim=1)[:, :n]),
    "flat": added(lambda m, x, n: m.t[: n * WIDTH].view(n, WIDTH), ROWS * WIDTH),
    "as-a-grid": added(
        lambda m, x, n: m.t.flatten(0, 1)[: 2 * n].view(n, 2, -1).sum(1), ROWS, 2, 6
    ),
    "every-other": added(lambda m, x, n: m.t[:, : 2 * n : 2], 1, 2 * ROWS, WIDTH),
    "batch": Form(
        lambda m, x: x + m.t[: x.shape[0], None],
        lambda: {"t": new(ROWS, WIDTH)},
        shape=lambda n: (n, 5, WIDTH),
    ),
    "first-token": Form(joined, lambda: {"t": new(1, ROWS + 1, WIDTH), "first": new(1, 1, WIDTH)}),
    "around-the-middle": added(
        lambda m, x, n: m.t[m.rows - n : m.rows + n - 1].unfold(0, n, 1).sum(-1),
        2 * ROWS - 1,
        WIDTH,
    ),
    "framed": Form(framed, lambda: {"t": new(1, ROWS, WIDTH)}),
    "written-into": Form(written, lambda: {"t": new(ROWS, WIDTH)}),
    "embedding": Form(
        lambda m, x: x + m.t.weight[: x.shape[1]], lambda: {"t": nn.Embedding(ROWS, WIDTH)}
    ),
    "sum": summed(lambda m, x, n: m.t[:n].sum(0)),
    "sum-of-both-parts": summed(lambda m, x, n: m.t[:n].sum(0) - m.t[n:].sum(0), others=(3, 12)),
    "sum-and-whole": summed(lambda m, x, n: m.t[:n].sum(0) - m.t.sum(0)),
    "sum-and-whole-by-len": summed(lambda m, x, n: m.t[: len(x[0])].sum(0) - m.t.sum(0)),
    "sum-of-half": summed(lambda m, x, n: m.t[: (n + 1) // 2].sum(0) - m.t.sum(0)),
    "sum-of-a-rounded-part": summed(lambda m, x, n: m.t[: math.ceil(n / 2)].sum(0) - m.t.sum(0)),
    "sum-by-steps": summed(lambda m, x, n: m.t[::n].sum(0), **SHORT),
    "sum-of-chunks": summed(lambda m, x, n: m.t.chunk(n)[0].sum(0), **SHORT),
    "sum-of-a-view": added(lambda m, x, n: m.t.view(n, -1).sum(1)[:, None], ROWS, **SHORT),
    "full": added(lambda m, x, n: m.t[:, :n], **FULL),
    "full-sum": summed(lambda m, x, n: m.t[:n].sum(0), **FULL),
    "full-sum-of-more": summed(lambda m, x, n: m.t[:n].sum(0), length=ROWS + 4, others=(3, 7, 12)),
    "full-sum-from-the-end": summed(lambda m, x, n: m.t[-n:].sum(0), **FULL),
    "full-sum-by-len": summed(lambda m, x, n: m.t[: len(x[0])].sum(0), **FULL),
    "full-sum-unsliced": summed(lambda m, x, n: m.t[:n, :].sum(0), **FULL),
    "full-sum-at-most": summed(lambda m, x, n: m.t[: min(m.rows, n), :].sum(0), **FULL),
    "full-sum-narrowed": summed(lambda m, x, n: m.t.narrow(0, 0, n).sum(0), **FULL),
    "full-sum-if-shorter": summed(
        lambda m, x, n: (m.t if n >= m.t.shape[0] else m.t[:n]).sum(0), **FULL
    ),
    "full-sum-if-unequal": summed(lambda m, x, n: (m.t if n == m.rows else m.t[:n]).sum(0), **FULL),
    "full-sum-from-a-start": summed(lambda m, x, n: m.t[max(0, m.rows - n) :].sum(0), **FULL),
    "full-sum-from-a-difference": summed(lambda m, x, n: m.t[m.rows - n :, :].sum(0), **FULL),
    "sum-of-chunks-by-len": summed(
        lambda m, x, n: m.t.chunk(len(x[0]))[0].sum(0) + m.t.sum(0), **SHORT
    ),
    "sum-of-a-view-by-len": added(
        lambda m, x, n: m.t.view(len(x[0]), -1).sum(1)[:, None], ROWS, **SHORT
    ),
    "split-of-both-parts": summed(
        lambda m, x, n: m.t.split([n, m.rows - n])[1].sum(0) + m.t.sum(0), others=(3, 12)
    ),
    "relative-keys": Form(
        lambda m, x: (
            F.pad(x @ m.t[m.rows - x.shape[1] :].t(), (1, 0)).flatten(1)[:, : x.shape[1], None] + x
        ),
        lambda: {"t": new(ROWS, WIDTH)},
    ),
    "gated-mixing": Form(
        lambda m, x: x * (m.t[: x.shape[1], : x.shape[1]] @ x + m.u[: x.shape[1], None]),
        lambda: {"t": new(ROWS, ROWS), "u": new(ROWS)},
    ),
    "mask-buffer": mixed(
        lambda m, x, n: (scores(x) + m.mask[:n, :n]).softmax(-1),
        lambda: {"mask": torch.full((ROWS, ROWS), -9.0).triu(1)},
    ),
    "mask-parameter": mixed(
        lambda m, x, n: scores(x) * m.t[:n, :n], lambda: {"t": new(ROWS, ROWS)}
    ),
    "mixing": mixed(lambda m, x, n: m.t[:n, :n], lambda: {"t": new(ROWS, ROWS)}),
    "mixing-low-rank": mixed(
        lambda m, x, n: (m.t @ m.u)[:n, :n], lambda: {"t": new(ROWS, 4), "u": new(4, ROWS)}
    ),
    "generated": mixed(lambda m, x, n: m.r(m.q(x).relu())[..., :n], generated),
    "generated-by-len": mixed(lambda m, x, n: m.r(m.q(x).relu())[..., : len(x[0])], generated),
    "generated-sum": Form(
        lambda m, x: x * m.r(m.q(x).relu())[..., : x.shape[1]].sum(-1, keepdim=True),
        generated,
        **FULL,
    ),
    "continuous": Form(lambda m, x: x + m.r(m.q(m.at).relu())[: x.shape[1]], continuous),
    "continuous-in-part": Form(lambda m, x: x + m.r(m.q(m.at[: x.shape[1]]).relu()), continuous),
    "taps": kernel(lambda m, n: m.t[:, :, :n], WIDTH, 1, ROWS),
    "taps-from-the-end": kernel(lambda m, n: m.t[..., -n:], WIDTH, WIDTH, ROWS),
    "width-of-the-input": Form(
        lambda m, x: F.linear(x, m.t[:, : x.shape[-1]]),
        lambda: {"t": new(WIDTH, ROWS)},
        shape=lambda n: (2, 5, n),
    ),
    "picture": picture(
        lambda m, x, h, w: m.t[:, :h, :w], lambda: {"t": new(1, ROWS, ROWS, WIDTH)}, **SQUARE
    ),
    "picture-around-its-middle": picture(middle, lambda: {"t": new(1, ROWS, ROWS, WIDTH)}),
    "picture-of-a-flat-table": picture(
        lambda m, x, h, w: m.t.view(1, m.rows, m.rows, -1)[:, :h, :w],
        lambda: {"t": new(1, ROWS * ROWS, WIDTH)},
    ),
    "rows-and-columns": picture(
        crosswise, lambda: {"rows_": new(ROWS, WIDTH // 2), "columns": new(ROWS, WIDTH // 2)}
    ),
    "rows-plus-columns": picture(
        lambda m, x, h, w: m.r[:h] + m.c[:, :w],
        lambda: {"r": new(ROWS, 1, WIDTH), "c": new(1, ROWS, WIDTH)},
    ),
}


def half_of_everything(structure: Structure) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    keeps = {}
    for g in structure.exact:
        left = max(g.least, g.step * -(-(g.size // 2) // g.step), 1)
        keeps[g.name] = torch.randperm(g.size, generator=generator) < left
    return keeps


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_table_when_the_example_reads_a_part_then_other_lengths_are_as_masked(form: Form):
    torch.manual_seed(0)
    model = Model(form.read, form.held()).double().eval()
    structure = analyze(model, torch.randn(form.shape(form.length), dtype=torch.float64))
    keeps = half_of_everything(structure)
    assert keeps, "there is nothing to judge"
    masks = group_masks(structure, keeps)
    masked = copy.deepcopy(model)
    small = cut_and_verify(
        copy.deepcopy(model),
        structure,
        Plan.from_keeps(structure, keeps),
        masks,
        torch.randn(form.shape(form.length), dtype=torch.float64),
        notes=[],
        verify=True,
    ).model
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
        for length in (form.length, *form.others):
            x = torch.randn(form.shape(length), dtype=torch.float64)
            assert float((small(x) - masked(x)).abs().max() / masked(x).abs().max()) < 1e-10


def fused(sizes: Callable[[Any], list[int]]) -> Callable[[Any, Tensor], Tensor]:
    """Queries, keys and values from one weight, whose parts are told apart by their sizes."""

    def read(m: Any, x: Tensor) -> Tensor:
        q, k, v = (F.linear(x, part) for part in m.t.split(sizes(m)))
        return x + (q @ (k.transpose(1, 2) @ v)) @ m.o

    return read


def by_slices(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.t[: m.d], m.t[m.d : 2 * m.d], m.t[2 * m.d :]
    return x + (F.linear(x, q) @ (F.linear(x, k).transpose(1, 2) @ F.linear(x, v))) @ m.o


def by_literals(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.t[:8], m.t[8:16], m.t[16:]
    return x + (F.linear(x, q) @ (F.linear(x, k).transpose(1, 2) @ F.linear(x, v))) @ m.o


def by_its_own_size(m: Any, x: Tensor) -> Tensor:
    third = m.t.shape[0] // 3
    q, k, v = m.t[:third], m.t[third : 2 * third], m.t[2 * third :]
    return x + (F.linear(x, q) @ (F.linear(x, k).transpose(1, 2) @ F.linear(x, v))) @ m.o


def in_chunks(m: Any, x: Tensor) -> Tensor:
    q, k, v = (F.linear(x, part) for part in m.t.chunk(3))
    return x + (q @ (k.transpose(1, 2) @ v)) @ m.o


def with_registers(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([x, m.registers.expand(len(x), -1, -1)], 1)
    return (y @ (y.transpose(1, 2) @ y))[:, : x.shape[1]]


def packed() -> dict[str, Any]:
    return {"t": new(24, WIDTH), "o": new(8, WIDTH), "d": 8}


def whole_weight(m: Any, x: Tensor) -> Tensor:
    return x + F.linear(F.linear(x, m.t[0 : 3 * m.d]), m.t.t()[:, : 3 * m.d]) @ m.o[:WIDTH]


OWN = {
    "whole-by-an-attribute": (whole_weight, packed, {"t": 24}),
    "attribute": (fused(lambda m: [m.d] * 3), packed, {"t": 8, "t[1]": 8}),
    "slices-by-an-attribute": (by_slices, packed, {"t": 8, "t[1]": 8}),
    "slices-by-literals": (by_literals, packed, {"t[1]": 8}),
    "its-own-size": (by_its_own_size, packed, {"t": 8, "t[1]": 8}),
    "chunks": (in_chunks, packed, {"t": 8, "t[1]": 8}),
    "tokens-of-its-own": (
        with_registers, lambda: {"registers": new(1, 4, WIDTH)}, {"registers:1": 4}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("read", "held", "groups"), OWN.values(), ids=OWN)
def test_weight_when_it_is_cut_by_sizes_of_its_own_then_its_parts_can_go(read, held, groups):
    torch.manual_seed(0)
    structure = analyze(Model(read, held()), torch.randn(2, 7, WIDTH))
    assert {g.name: g.size for g in structure.exact} == {**groups, "up": 10}


def test_table_when_the_example_reads_a_part_then_the_rest_says_so():
    model = Model(FORMS["slice"].read, FORMS["slice"].held())
    structure = analyze(model, torch.randn(2, 7, WIDTH))
    (rest,) = [g for g in structure.frozen if g.size == ROWS - 7]
    assert rest.frozen.why == "the example reads a part of it"
    assert "slice" in rest.frozen.op
