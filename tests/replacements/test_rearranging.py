"""einops' layers, and sizes that a module keeps in a dict."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sc

layers = pytest.importorskip("einops.layers.torch", reason="einops is not installed")


class Attention(nn.Module):
    """Heads made and merged by einops' layers; all three from one layer, or each from its own."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused
        self.into = nn.Linear(16, 96)
        pattern = "b n (k h d) -> k b h n d" if fused else "b n (h d) -> b h n d"
        lengths = {"k": 3, "h": 4} if fused else {"h": 4}
        self.split = layers.Rearrange(pattern, **lengths)
        self.merge = layers.Rearrange("b h n d -> b n (h d)")
        self.out = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        q, k, v = self.split(x) if self.fused else map(self.split, x.split(32, -1))
        return self.out(self.merge((q @ k.mT * 0.3).softmax(-1) @ v))


class Named(nn.Module):
    """A grid whose sizes are in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"groups": 3, "width": 4}
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.a(x).view(-1, self.sizes["groups"], self.sizes["width"])
        return self.b((grid * grid.sum(1, keepdim=True)).flatten(1))


def check(model: nn.Module, result: sc.Result, x: Tensor) -> None:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in result.masks.items():
            twin.get_parameter(name).mul_(mask)
        other = torch.randn_like(x)
        torch.testing.assert_close(result.model(other), twin(other))
        torch.testing.assert_close(copy.deepcopy(result.model)(other), twin(other))


def test_prune_when_einops_layers_make_the_heads_then_heads_go(tmp_path):
    torch.manual_seed(0)

    def build() -> nn.Module:
        return nn.Sequential(Attention(fused=True), Attention(fused=True)).double().eval()

    model, x = build(), torch.randn(2, 5, 16, dtype=torch.float64)
    result = sc.prune(model, x, sparsity=0.5, grid="coarse")
    for block in result.model:
        assert type(block.split) is layers.Rearrange
        assert block.split.axes_lengths == {"k": 3, "h": 2}
        assert block.into.out_features == 48
    check(model, result, x)
    result.save(tmp_path / "small")
    loaded = sc.load_pruned(tmp_path / "small", build())
    torch.testing.assert_close(loaded(x), result.model(x))


def test_prune_when_layers_are_reduced_by_einops_then_channels_go():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        layers.Reduce("b (g c) (h p) (w q) -> b g c h w", "max", p=2, q=2, g=2),
        layers.Rearrange("b g c h w -> b (g c) h w"),
        nn.Conv2d(8, 4, 1),
    )
    model, x = model.double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert {g.size for g in sc.analyze(model, x).exact} == {2, 4}
    for grid in ("fine", "coarse"):
        result = sc.prune(model, x, sparsity=0.5, grid=grid)
        assert result.model[0].out_channels == 4
        check(model, result, x)


@pytest.mark.parametrize(("group", "size"), [("a", 3), ("a[1]", 4)])
def test_prune_when_sizes_are_in_a_dict_then_they_follow(group, size, tmp_path):
    torch.manual_seed(0)
    model, x = Named().double().eval(), torch.randn(5, 6, dtype=torch.float64)
    assert sc.analyze(model, x)[group].size == size
    result = sc.apply_plan(model, sc.Plan({group: (0, 2)}), x)
    assert sorted(result.model.sizes.values()) == sorted({3: [2, 4], 4: [2, 3]}[size])
    assert model.sizes == {"groups": 3, "width": 4}
    torch.testing.assert_close(
        sc.load_pruned(result.save(tmp_path / "small"), Named().double().eval())(x),
        result.model(x),
    )
