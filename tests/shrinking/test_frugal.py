"""A check that copies no large parameter: the same answers, whatever a forward does with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import VerificationError
from secateur.shrinking import slices, verify
from tests.fuzz.judge import judge
from tests.fuzz.program import Program
from tests.fuzz.ways import WAYS


@pytest.fixture(autouse=True)
def frugal(monkeypatch):
    monkeypatch.setattr(verify, "FRUGAL_BYTES", -1)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("seed", range(20))
def test_check_when_it_is_frugal_then_random_programs_are_judged_right(seed):
    outcome = judge(Program.drawn(7_000 + seed, tuple(WAYS)))
    assert not outcome.defect, outcome


class Net(nn.Module):
    """Two layers, the second weight read in a way of its own."""

    def __init__(self, read: Callable[[nn.Parameter, Tensor], Tensor]):
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.second = nn.Parameter(torch.randn(4, 12))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.second, self.first(x).relu())


def past_operations(weight: nn.Parameter, x: Tensor) -> Tensor:
    return x @ weight.data.T


def after_a_view(weight: nn.Parameter, x: Tensor) -> Tensor:
    return torch.einsum("bi,oi->bo", x, weight.unflatten(0, (2, 2)).flatten(0, 1))


def written_to(weight: nn.Parameter, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight.mul_(1.0)
    return nn.functional.linear(x, weight)


def by_its_type(weight: nn.Parameter, x: Tensor) -> Tensor:
    if x.dtype != weight.dtype:
        raise TypeError("types differ")
    return x @ weight.T


def by_name(weight: nn.Parameter, x: Tensor) -> Tensor:
    return torch.stack([(x * row).sum(-1) for row in weight.unbind()], -1)


@pytest.mark.parametrize(
    "read",
    [past_operations, after_a_view, written_to, by_its_type, by_name],
    ids=lambda f: f.__name__,
)
def test_prune_when_a_forward_reads_a_weight_its_own_way_then_it_is_exact_all_the_same(read):
    net, x = Net(read), torch.randn(3, 6)
    before = {name: p.clone() for name, p in net.named_parameters()}
    result = secateur.prune(net, x, 0.5, criterion="l2")
    assert result.verification.exact
    assert result.verification.difference < 1e-9
    assert result.model.second.shape == (4, 6)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_prune_when_frugal_then_no_large_parameter_holds_its_values_in_float64():
    seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def watched(weight: nn.Parameter, x: Tensor) -> Tensor:
        seen.add((weight.dtype, x.dtype))
        return x @ weight.T

    secateur.prune(Net(watched), torch.randn(3, 6), 0.5, criterion="l2")
    assert (torch.float32, torch.float64) in seen
    assert torch.float64 not in {weight for weight, _ in seen}


def test_prune_when_a_weight_below_a_mask_is_nan_then_it_goes():
    net, x = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(3, 6)
    structure = secateur.analyze(net, x)
    with torch.no_grad():
        net[0].weight[3] = torch.nan
        net[2].weight[:, 3] = torch.inf
    plan = secateur.Plan({structure.groups[0].name: tuple(i for i in range(12) if i != 3)})
    result = secateur.apply_plan(net, plan, x)
    assert result.verification.passed
    assert bool(result.model(x).isfinite().all())


def test_finish_when_single_weights_are_masked_besides_then_the_smaller_model_has_their_zeros():
    net, x = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(3, 6)
    mask = torch.rand(12, 6) > 0.3
    mask[::2] = False
    masks = {"0.weight": mask, "0.bias": torch.arange(12) % 2 == 1}
    with torch.no_grad():
        net[0].bias[::2] = 0
    result = secateur.shrink(net, masks, x)
    assert result.model[0].weight.shape == (6, 6)
    assert torch.equal(result.model[0].weight == 0, ~mask[1::2])


def test_prune_when_a_cut_is_wrong_then_it_is_refused(monkeypatch):
    """The check sees a fault, and does not blame its own way of reading."""
    right = slices.Choice.left

    def wrong(self, tensor: Tensor) -> Tensor:
        left = right(self, tensor)
        return left.flip(1) if left.shape == (4, 6) and left.is_floating_point() else left

    monkeypatch.setattr(slices.Choice, "left", wrong)
    net, x = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)), torch.randn(3, 6)
    with pytest.raises(VerificationError, match="differs from the masked one"):
        secateur.prune(net, x, 0.5, criterion="l2")
