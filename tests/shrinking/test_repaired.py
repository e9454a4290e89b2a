"""Masks that somebody else made, and data: what stays makes up for what goes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError, MaskError, UnknownNameError
from secateur.nni.speedup import ModelSpeedup


@pytest.fixture
def dense() -> nn.Sequential:
    """Return a network whose removed channels emit something all the same."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 5),
    ).eval()
    with torch.no_grad():
        net[1].bias.normal_()
    return net


@pytest.fixture
def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(48, 3, 8, 8, generator=generator) + 0.3 for _ in range(8)]


def masks() -> dict[str, Tensor]:
    """Return partial masks: every second channel of two convolutions, and no batch norm's."""
    keep = torch.arange(16) % 2 == 0
    return {
        "0.weight": keep[:, None, None, None].expand(16, 3, 3, 3).clone(),
        "0.bias": keep,
        "3.weight": keep[:, None, None, None].expand(16, 16, 3, 3).clone(),
    }


def error(dense: nn.Module, smaller: nn.Module) -> float:
    x = torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(9)) + 0.3
    with torch.no_grad():
        a, b = dense(x), smaller(x)
    return float(((a - b).square().mean() / a.var(0).mean()).sqrt())


def by_shrink(model: nn.Module, data: list[Tensor] | None, how: str) -> sc.Result:
    example = torch.zeros(2, 3, 8, 8)
    return sc.shrink(model, masks(), example, inplace=True, data=data, repair=how)


def by_speedup(model: nn.Module, data: list[Tensor] | None, how: str) -> sc.Result:
    nested = {
        "0": {"weight": masks()["0.weight"].float(), "bias": masks()["0.bias"].float()},
        "3": {"weight": masks()["3.weight"].float()},
    }
    speedup = ModelSpeedup(model, torch.zeros(2, 3, 8, 8), nested, data=data, repair=how)
    speedup.speedup_model()
    assert speedup.result is not None
    return speedup.result


Way = Callable[[nn.Module, list[Tensor] | None, str], sc.Result]


@pytest.mark.parametrize("way", [by_shrink, by_speedup])
@pytest.mark.parametrize("how", ["least_squares", "bias", "sparse"])
def test_masks_when_there_is_data_then_outputs_are_nearer_and_the_cut_is_exact(
    dense: nn.Sequential, data: list[Tensor], way: Way, how: str
) -> None:
    plain = way(copy.deepcopy(dense), None, how)
    repaired = way(copy.deepcopy(dense), data, how)
    assert plain.repair is None
    assert repaired.repair is not None
    assert repaired.repair.how == how
    assert repaired.plan == plain.plan
    assert repaired.verification is not None
    assert repaired.verification.exact
    assert error(dense, repaired.model) < 0.95 * error(dense, plain.model)


def zeroed(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, mask in masks().items():
            model.get_parameter(name).mul_(mask)
    return model


@pytest.mark.parametrize("way", [by_shrink, by_speedup])
def test_masks_when_the_repair_fails_then_the_model_is_as_it_was(
    dense: nn.Sequential, data: list[Tensor], way: Way
) -> None:
    for model, given, how, kind, said in (
        (dense, [data[0], data[0][:, :2]], "bias", ConfigError, "Sequential refuses it"),
        (dense, [], "bias", ConfigError, "there are no batches"),
        (dense, data, "biass", UnknownNameError, "Did you mean 'bias'"),
        (zeroed(copy.deepcopy(dense)), data, "bias", ConfigError, "are zero already"),
    ):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(kind, match=said):
            way(model, given, how)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_shrink_when_a_mask_does_not_fit_then_data_changes_nothing_about_the_error(
    dense: nn.Sequential, data: list[Tensor]
) -> None:
    with pytest.raises(MaskError, match="there is no parameter"):
        sc.shrink(dense, {"9.weight": torch.ones(1).bool()}, torch.zeros(2, 3, 8, 8), data=data)


def test_shrink_when_a_tied_weight_is_masked_by_its_other_name_then_it_is_repaired() -> None:
    torch.manual_seed(0)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 8)
            self.also = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.also(x).relu())

    dense = Tied().eval()
    keep = (torch.arange(24) % 3 > 0)[:, None].expand(24, 8)
    batches = [torch.randn(64, 8) for _ in range(6)]
    found = sc.shrink(dense, {"also.weight": keep}, batches[0][:2], data=batches)
    assert found.repair is not None
    assert found.repair.after.error < found.repair.before.error
    assert found.model.first.out_features == found.model.second.in_features == 16
