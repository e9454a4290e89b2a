"""What a repair is for: the smaller model is nearer to the dense one, on inputs it never saw."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.repair import Distance, repairs

NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), (8,)),
    "three layers": (
        lambda: nn.Sequential(
            nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 4)
        ),
        (8,),
    ),
    "no bias": (
        lambda: nn.Sequential(
            nn.Linear(8, 32, bias=False), nn.ReLU(), nn.Linear(32, 4, bias=False)
        ),
        (8,),
    ),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)),
        (3, 8, 8),
    ),
}


def error(dense: nn.Module, smaller: nn.Module, x: Tensor) -> float:
    """Return the root mean square difference of outputs, as a share of the dense one's spread."""
    with torch.no_grad():
        a, b = dense(x), smaller(x)
    return float(((a - b).square().mean() / a.var(0).mean()).sqrt())


@pytest.mark.parametrize("how", [*repairs])
@pytest.mark.parametrize("name", NETS)
def test_prune_when_repaired_then_outputs_on_other_inputs_are_nearer(name: str, how: str) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    dense = build().eval()
    data = [torch.randn(64, *shape) + 0.5 for _ in range(8)]
    before = {n: p.clone() for n, p in dense.named_parameters()}
    fresh = torch.randn(256, *shape) + 0.5
    errors = {}
    for each in ("none", how):
        result = sc.prune(dense, data[0][:2], 0.5, "activation", data=data, repair=each)
        errors[each] = error(dense, result.model, fresh)
    if (name, how) == ("no bias", "bias"):  # there is nothing to put a mean into
        assert errors["bias"] == errors["none"]
        return
    assert errors[how] < (0.99 if how == "bias" else 0.8) * errors["none"]
    assert result.repair is not None
    assert result.repair.after.error < result.repair.before.error
    assert result.repair.after.error == pytest.approx(errors[how], rel=0.3)
    assert all(torch.equal(p, before[n]) for n, p in dense.named_parameters())


class Halves(nn.Module):
    """Each expert sees the rows whose first input has its sign."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 3)
        for sign, expert in zip((1, -1), self.experts, strict=True):
            rows = (sign * x[:, 0] > 0).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return out


def test_repair_when_the_first_batch_reaches_one_expert_then_the_other_is_refitted_too():
    batches = [torch.randn(64, 6) for _ in range(4)]
    batches[0][:, 0].abs_()
    result = sc.prune(Halves(), batches[1], 0.5, "activation", data=batches)
    done = {refit.tensor for refit in result.repair.refits if refit.damping is not None}
    assert done == {"experts.0.2.weight", "experts.1.2.weight"}


class Waves(nn.Module):
    """What a few rows say of it is of no use elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((6 * self.b((6 * self.a(x)).sin())).sin())


@pytest.mark.slow
def test_prune_when_data_says_too_little_then_a_repair_that_loses_more_is_left() -> None:
    left = [left_as_it_was(seed) for seed in range(20)]
    assert any(left)
    assert not all(left)


def left_as_it_was(seed: int) -> bool:
    """Prune on a few rows, and return whether the repair was left; it is said if so."""
    torch.manual_seed(seed)
    model = Waves().eval()
    data = [torch.randn(3, 4) for _ in range(6)]
    repaired = sc.prune(model, data[0], 0.4, "activation", data=data)
    plain = sc.prune(model, data[0], 0.4, "activation", data=data, repair="none")
    assert repaired.repair is not None
    before, after = repaired.repair.before, repaired.repair.after
    assert after.error <= before.error or after.nearer_than(before)
    left = any("all new weights together" in note for note in repaired.repair.notes)
    same = [torch.equal(a, b) for a, b in zip(*states(repaired.model, plain.model), strict=True)]
    assert left == all(same) == (before == after)
    return left


def states(*models: nn.Module) -> list[list[Tensor]]:
    return [list(model.state_dict().values()) for model in models]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Distance(0.1), Distance(0.2)),
        (Distance(0.2, 0.1), Distance(0.1, 0.2)),
        (Distance(0.2), Distance(float("nan"))),
        (Distance(float("nan"), 0.1), Distance(0.1, float("nan"))),
    ],
    ids=str,
)
def test_distance_when_one_is_nearer_then_the_other_is_not(one: Distance, other: Distance) -> None:
    assert one.nearer_than(other)
    assert not other.nearer_than(one)
    assert not one.nearer_than(one)
