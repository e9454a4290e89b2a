"""What ``analyze`` says: printing, explanations, costs against the model that is really cut."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur.errors import UnknownNameError
from secateur.graph.lengths import now
from secateur.shrinking import Plan, cut_and_verify, group_masks
from secateur.structure import Structure, analyze


class Attention(nn.Module):
    def __init__(self, width: int = 6, heads: int = 4, head: int = 4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, heads * head) for _ in range(3))
        self.out = nn.Linear(heads * head, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.size()
        q, k, v = (
            f(x).view(n, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """Two branches of one width, a grouped convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 1),
        )
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.right(F.relu(self.left(x)))
        return self.head(self.grouped(x).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(self.embedding(x))))


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 6),
        nn.LayerNorm(6),
        nn.Linear(6, 2),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "perceptron": (perceptron, torch.ones(2, 6)),
    "convolutional": (convolutional, torch.ones(2, 3, 6, 6)),
    "attention": (Attention, torch.ones(2, 5, 6)),
    "residual": (Residual, torch.ones(2, 3, 8, 8)),
    "tied": (Tied, torch.arange(6).view(2, 3)),
}


@dataclass
class Analysed:
    model: nn.Module
    example: Tensor
    structure: Structure


def analysed(name: str) -> Analysed:
    build, example = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    return Analysed(model, example, analyze(model, example))


@pytest.fixture(params=MODELS)
def any_model(request: pytest.FixtureRequest) -> Analysed:
    return analysed(request.param)


def flops(model: nn.Module, example: Tensor) -> int:
    # of a CPU's fused attention torch's counter knows nothing
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
        model(example)
    return counter.get_total_flops()


def cut(a: Analysed, keep: dict[str, int]) -> nn.Module:
    """Return the model that keeps the first so many positions of each group."""
    structure = a.structure
    keeps = {name: torch.arange(structure[name].size) < n for name, n in keep.items()}
    plan, masks = Plan.from_keeps(structure, keeps), group_masks(structure, keeps)
    return cut_and_verify(
        copy.deepcopy(a.model), structure, plan, masks, a.example, notes=[], verify=True
    ).model


# costs


def test_cost_when_nothing_is_cut_then_it_is_what_torch_counts(any_model):
    cost = any_model.structure.cost()
    assert cost.params == sum(p.numel() for p in any_model.model.parameters())
    assert 2 * cost.macs == flops(any_model.model, any_model.example)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_cost_when_a_plan_is_given_then_it_is_that_of_the_model_really_cut(any_model, share):
    structure = any_model.structure
    keep = {g.name: max(1, int(g.size * share)) for g in structure.groups}
    small, cost = cut(any_model, keep), structure.cost(keep)
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert 2 * cost.macs == flops(small, any_model.example)
    assert cost == analyze(small, any_model.example).cost()


def test_cost_when_a_plan_object_is_given_then_it_is_that_of_its_counts(any_model):
    structure = any_model.structure
    group = structure.groups[0]
    plan = Plan({group.name: tuple(range(group.size // 2))})
    assert structure.cost(plan) == structure.cost({group.name: group.size // 2})


def test_cost_when_more_is_kept_then_it_is_never_less(any_model):
    structure = any_model.structure
    for group in structure.groups:
        costs = [structure.cost({group.name: n}) for n in range(1, group.size + 1)]
        for less, more in pairwise(costs):
            assert less.params <= more.params
            assert less.macs <= more.macs
            assert less.peak_bytes <= more.peak_bytes


def test_params_and_macs_per_index_when_one_position_goes_then_they_are_the_saving(any_model):
    structure = any_model.structure
    whole = structure.cost()
    for group in structure.groups:
        less = structure.cost({group.name: group.size - 1})
        assert whole.params - less.params == group.params > 0
        assert whole.macs - less.macs == structure.macs_per_index(group) > 0


def test_peak_bytes_when_layers_follow_each_other_then_two_activations_are_alive():
    model = nn.Sequential(nn.Linear(4, 100, bias=False), nn.Linear(100, 50, bias=False))
    structure = analyze(model, torch.ones(2, 4))
    assert structure.cost().peak_bytes == 2 * (100 + 50) * 4
    assert structure.cost({"0": 10}).peak_bytes == 2 * (10 + 50) * 4


def test_cost_when_printed_then_it_has_three_digits_and_units():
    assert str(analysed("convolutional").structure.cost()) == (
        "1.04 k params, 8.47 k MACs, 2.05 kB peak activations"
    )


# printing


def test_print_when_shown_then_every_group_and_every_reason_is_there(any_model):
    structure = any_model.structure
    text = str(structure)
    assert str(structure.cost()) in text
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert [row for row in rows if row] == [g.name for g in structure.groups]
    for group in structure.frozen:
        assert group.frozen.why in text


def test_print_when_a_group_is_inexact_then_the_operation_and_module_are_named():
    words = " ".join(str(analysed("convolutional").structure).replace("│", " ").split())
    assert "0 out, 1 out, 4 in" in words
    assert "inexact: normalises over the axis" in words
    assert "aten.native_layer_norm.default in" in words


def test_print_when_groups_are_sized_together_then_it_says_so():
    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cat(self.a(x).chunk(2, 1)[::-1], 1))

    structure = analyze(Swapped(), torch.ones(2, 3))
    assert structure["a"].sized == ("a[1]",)
    assert "exact; as many as a[1]" in str(structure)


def test_repr_when_shown_then_it_is_one_line(any_model):
    s = any_model.structure
    assert repr(s) == f"Structure({s.model}: {len(s.groups)} groups, {len(s.frozen)} frozen)"


# explanations and look-ups


@pytest.mark.parametrize(
    ("model", "tensor", "dim", "expected"),
    [
        (
            "convolutional",
            "4.weight",
            1,
            """
            4.weight dim 1: (8 4 4)
              0 (8, 7 slices, exact)
              4 frozen: a spatial dimension (aten.convolution.default in '0')
              4 frozen: a spatial dimension (aten.convolution.default in '0')
            """,
        ),
        (
            "attention",
            "out.weight",
            1,
            """
            out.weight dim 1: (4 4)
              q (4, 7 slices, exact)
              v (4, 3 slices, exact)
            """,
        ),
        (
            "perceptron",
            "0.weight",
            1,
            """
            0.weight dim 1: 6
              6 frozen: it is the model's input
            """,
        ),
        (
            "tied",
            "head.weight",
            1,
            """
            head.weight dim 1: 8
              embedding:1 (8, 4 slices, exact)
            """,
        ),
        (
            "convolutional",
            "1.running_mean",
            0,
            """
            1.running_mean dim 0: 8
              0 (8, 7 slices, exact)
            """,
        ),
    ],
    ids=["flattened", "heads", "input", "tied", "buffer"],
)
def test_explain_when_asked_for_a_dimension_then_it_says_what_it_is_made_of(
    model, tensor, dim, expected
):
    lines = [line.strip() for line in expected.strip().splitlines()]
    found = analysed(model).structure.explain(tensor, dim)
    assert [line.strip() for line in found.splitlines()] == lines


@pytest.mark.parametrize(
    ("look_up", "hint"),
    [
        (lambda s: s["qq"], "no group 'qq'. Did you mean 'q'?"),
        (lambda s: s.tensor("q.weigth"), "no tensor 'q.weigth'. Did you mean 'q.weight'?"),
        (lambda s: s.explain("zzz", 0), "no tensor 'zzz'."),
        (lambda s: s.cost({"qq": 1}), "no group 'qq'. Did you mean 'q'?"),
    ],
    ids=["group", "tensor", "explain", "cost"],
)
def test_look_up_when_the_name_is_unknown_then_the_nearest_is_suggested(look_up, hint):
    with pytest.raises(UnknownNameError) as raised:
        look_up(analysed("attention").structure)
    assert str(raised.value) == f"Attention has {hint}"


def test_tensor_when_it_is_tied_then_both_names_are_the_same_tensor():
    structure = analysed("tied").structure
    assert structure.tensor("head.weight") is structure.tensor("embedding.weight")


def test_members_when_a_residual_joins_branches_then_one_group_has_them_all():
    structure = analysed("residual").structure
    roles = {(m.tensor, m.dim): m.role for m in structure["stem"].members}
    assert roles == {
        ("stem.weight", 0): "out",
        ("stem.bias", 0): "out",
        ("left.weight", 1): "in",
        ("right.weight", 0): "out",
        ("right.bias", 0): "out",
        ("grouped.weight", 0): "out",
        ("head.weight", 1): "in",
    }


def test_members_when_a_norm_has_statistics_then_they_are_buffers():
    members = analysed("convolutional").structure["0"].members
    buffers = {m.tensor for m in members if m.role == "buffer"}
    assert buffers == {"1.running_mean", "1.running_var"}


# independent groups


def test_independent_when_groups_share_a_grid_then_one_of_them_is_chosen(any_model):
    chosen = any_model.structure.independent(inexact=True)
    names = {g.name for g in chosen}
    for group in chosen:
        assert not names & set(group.grid)


@pytest.mark.parametrize(
    ("model", "inexact", "expected"),
    [
        ("perceptron", False, ["0", "2"]),
        ("convolutional", False, ["0"]),
        ("convolutional", True, ["0", "4"]),
        ("attention", False, ["q"]),  # heads: as many as widths, and first; not also the widths
        ("residual", False, ["stem", "left"]),  # convolution groups before their channels
    ],
)
def test_independent_when_asked_then_these_are_chosen(model, inexact, expected):
    structure = analysed(model).structure
    assert [g.name for g in structure.independent(inexact=inexact)] == expected


@pytest.mark.parametrize(("heads", "head"), [(2, 8), (4, 4), (8, 2)])
def test_independent_when_there_is_attention_then_whole_heads_are_chosen(heads, head):
    structure = analyze(Attention(heads=heads, head=head), torch.randn(2, 5, 6))
    sizes = {
        grid: {g.size for g in structure.independent(grid=grid)}
        for grid in ("auto", "coarse", "fine")
    }
    assert sizes["auto"] == {heads}
    assert sizes["fine"] == {max(heads, head)}
    assert sizes["coarse"] == {min(heads, head)}


def test_independent_when_a_grid_is_of_a_convolution_then_what_has_more_positions_is_chosen():
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=2), nn.Conv2d(32, 4, 1))
    structure = analyze(net, torch.randn(2, 3, 8, 8))
    chosen = {grid: structure.independent(grid=grid) for grid in ("auto", "fine")}
    assert chosen["auto"] == chosen["fine"]
    assert all(group.size > 2 for group in chosen["auto"])


def test_independent_when_half_of_each_is_kept_then_half_of_a_grid_is_left():
    structure = analysed("residual").structure
    count = structure.counter({g.name: g.size // 2 for g in structure.independent()})
    assert now(structure.tensor("grouped.weight")[0].axis, count) == 6  # of 12, and not a quarter


def test_analyze_when_the_forward_reads_a_value_then_it_is_frozen_and_the_rest_is_not():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x):
            y = self.b(self.a(x))
            return y * 2 if y.sum().item() > 0 else y

    structure = analyze(Reads(), torch.ones(2, 3))
    assert [g.name for g in structure.groups] == ["a"]


# how it shows


def blocks(*widths: int) -> nn.Sequential:
    """Return residual blocks of so many neurons, behind each other."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x).relu())

    return nn.Sequential(*map(Block, widths))


def test_print_when_layers_are_alike_then_they_are_one_row_and_others_have_their_own():
    structure = analyze(blocks(8, 8, 16, 8), torch.ones(2, 4))
    lines = [line for line in str(structure).splitlines() if line.startswith("│")]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert [row[:3] for row in rows] == [
        ["*.up ×3", "8", "up out, down in"],
        ["2.up", "16", "up out, down in"],
    ]
    assert "can be dropped whole: * ×3 (76 params), 2 (148 params)" in str(structure)


def test_print_when_a_group_is_a_factor_of_a_dimension_then_it_says_which():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.up, self.down = 4, nn.Linear(3, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            parts = self.up(x).view(len(x), self.heads, -1)
            return self.down((parts * parts.sum(2, keepdim=True)).flatten(1))

    shown = str(analyze(Heads(), torch.ones(2, 3)))
    assert "of [4] × 2" in shown
    assert "of 4 × [2]" in shown


@pytest.mark.parametrize("width", [80, 120])
def test_print_when_a_screen_is_narrow_then_every_line_fits(any_model, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(any_model.structure)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    table = [line.rstrip() for line in lines if line.startswith(("│", "┃"))]
    assert all(line.endswith(("│", "┃")) for line in table), "a column is cut off"


def test_structure_when_a_notebook_asks_then_it_is_a_table_in_html():
    structure = analyze(
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(1, 4)
    )
    shown = structure._repr_mimebundle_([], [])
    assert "0 out, 2 in" in shown["text/html"]
    assert "0 out, 2 in" in shown["text/plain"]
    assert "\x1b" not in str(structure)


def test_independent_when_groups_must_keep_equally_many_then_all_of_them_are_chosen_or_none():
    class TwoGrids(nn.Module):  # of as many heads, of different widths
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4
            self.a, self.b, self.out = nn.Linear(3, 8), nn.Linear(3, 32), nn.Linear(10, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.a(x).view(-1, self.heads, 2).sum(1)
            b = self.b(x).view(-1, self.heads, 8).sum(1)
            return self.out(torch.cat([a, b], 1))

    class Named(TwoGrids):
        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = 2, 8

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.a(x).view(-1, self.heads, self.narrow).sum(1)
            b = self.b(x).view(-1, self.heads, self.wide).sum(1)
            return self.out(torch.cat([a, b], 1))

    heads = analyze(TwoGrids(), torch.randn(5, 3)).independent()
    assert {g.name: g.size for g in heads} == {"a": 4, "b": 4}
    widths = analyze(Named(), torch.randn(5, 3)).independent()  # b's width, so neither's heads
    assert {g.name: g.size for g in widths} == {"a[1]": 2, "b[1]": 8}


def test_structure_when_a_forward_was_recorded_then_none_of_its_activations_is_held() -> None:
    width = 37  # no other tensor has it
    net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Flatten(), nn.Linear(width, 3))
    structure = analyze(net, torch.randn(2, 4))
    gc.collect()
    tensors = [x for x in gc.get_objects() if type(x) is Tensor]
    alive = [x for x in tensors if x.shape == (2, width)]
    assert not alive
    assert structure.groups
