"""What is left of a tensor lies in memory as the tensor did."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.shrinking.slices import laid_out_as

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1)
    return nn.Sequential(*layers, nn.ConvTranspose2d(24, 8, 3), nn.Conv2d(8, 4, 3, groups=4))


def channels_last(model: nn.Module) -> list[bool]:
    weights = [p for p in model.parameters() if p.ndim == 4]
    return [w.is_contiguous(memory_format=torch.channels_last) for w in weights]


@pytest.mark.parametrize("settings", [{}, {"granularity": "element"}, {"granularity": "2:4"}])
@pytest.mark.parametrize("inplace", [True, False])
def test_prune_when_weights_are_channels_last_then_they_stay_so(settings, inplace, tmp_path):
    model = net().to(memory_format=torch.channels_last)
    if settings.get("granularity") == "2:4":
        settings = {**settings, "names": ["3", "4"]}
    result = sc.prune(model, X, 0.5, inplace=inplace, **settings)
    assert all(channels_last(result.model))
    result.save(tmp_path)
    assert all(channels_last(sc.load_pruned(tmp_path, net().to(memory_format=torch.channels_last))))
    plain = sc.load_pruned(tmp_path, net())
    assert all(p.is_contiguous() for p in plain.parameters())


def test_prune_when_gradients_are_channels_last_then_they_stay_so():
    model = net().to(memory_format=torch.channels_last)
    model(X.to(memory_format=torch.channels_last)).sum().backward()
    sc.prune(model, X, 0.5, inplace=True)
    for parameter in model.parameters():
        assert parameter.grad.shape == parameter.shape
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_layout_when_dimensions_are_permuted_then_what_is_left_is_too(order):
    back = sorted(range(3), key=order.__getitem__)
    like = torch.randn(4, 5, 6).permute(order).contiguous().permute(back)
    left = laid_out_as(like[:2, :, 1:4], like)
    assert torch.equal(left, like[:2, :, 1:4])
    assert left.permute(order).is_contiguous()


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"granularity": "element"}, True),
        ({"granularity": "2:4", "names": ["3"]}, True),
        ({}, False),
    ],
    ids=["element", "2:4", "group"],
)
def test_result_when_no_shape_changed_then_it_says_that_the_dense_loader_does(settings, same):
    result = sc.prune(net(), X, 0.5, **settings)
    assert ("whatever loads the dense Sequential" in result.loads_with) == same
    if same:
        net().load_state_dict(result.model.state_dict())
