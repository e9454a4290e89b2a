"""Masks of inputs and outputs lie along the operation's channels, whatever else has their size."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, MaskError
from secateur.nni import TorchEvaluator
from secateur.nni.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    Pruner,
    TaylorPruner,
)

C = 6  # channels, and every other length as well: nothing but the operation tells them apart


class Around(nn.Module):
    """Calls ``mid`` between two layers that have weights on its channels."""

    def __init__(self, before: nn.Module, mid: nn.Module, after: nn.Module):
        super().__init__()
        self.before, self.mid, self.after = before, mid, after
        self.seen: Any = None
        self.read: Any = None

    def forward(self, x: Tensor) -> Tensor:
        read = self.before(x)
        self.read = read.clone()
        self.seen = self.mid(read)
        return self.after(self.seen)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).relu()


class Functional(nn.Module):
    """A convolution whose class says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(C, C, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel)


class TokenMixing(nn.Module):
    """Mixes tokens by weights that are as many as channels, and ends on the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).relu().transpose(1, 2)
        return self.channels(x).relu()


class ChannelsLastNorm(nn.LayerNorm):
    """A LayerNorm over dimension 1, as vision models have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def images(rank: int, mid: nn.Module) -> tuple[nn.Module, Tensor, int]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    return Around(conv(C, C, 1), mid, conv(C, C, 1)), torch.randn(5, *[C] * (rank + 1)), 1


def tokens(mid: nn.Module) -> tuple[nn.Module, Tensor, int]:
    return Around(nn.Linear(C, C), mid, nn.Linear(C, C)), torch.randn(5, C, C), -1


MODULES = {
    "Conv1d": lambda: images(1, nn.Conv1d(C, C, 1)),
    "Conv2d": lambda: images(2, nn.Conv2d(C, C, 1)),
    "Conv2d, grouped": lambda: images(2, nn.Conv2d(C, C, 1, groups=2)),
    "Conv3d": lambda: images(3, nn.Conv3d(C, C, 1)),
    "ConvTranspose2d": lambda: images(2, nn.ConvTranspose2d(C, C, 1)),
    "a subclass": lambda: images(2, type("Mine", (nn.Conv2d,), {})(C, C, 1)),
    "BatchNorm1d of sequences": lambda: images(1, nn.BatchNorm1d(C)),
    "BatchNorm2d": lambda: images(2, nn.BatchNorm2d(C)),
    "BatchNorm3d": lambda: images(3, nn.BatchNorm3d(C)),
    "InstanceNorm2d": lambda: images(2, nn.InstanceNorm2d(C)),
    "GroupNorm": lambda: images(2, nn.GroupNorm(2, C)),
    "ReLU of images": lambda: images(2, nn.ReLU()),
    "ReLU in place": lambda: images(2, nn.ReLU(inplace=True)),
    "MaxPool2d": lambda: images(2, nn.MaxPool2d(1)),
    "Dropout of sequences": lambda: images(1, nn.Dropout()),
    "a residual block": lambda: images(2, Residual(nn.Conv2d(C, C, 1))),
    "a LayerNorm over dimension 1": lambda: images(2, ChannelsLastNorm(C)),
    "a convolution by hand": lambda: images(2, Functional()),
    "two layers": lambda: images(2, nn.Sequential(nn.Conv2d(C, C, 1), nn.Sigmoid())),
    "Upsample": lambda: images(2, nn.Upsample(scale_factor=1)),
    "a mixer": lambda: tokens(TokenMixing()),
    "Linear": lambda: tokens(nn.Linear(C, C)),
    "LayerNorm": lambda: tokens(nn.LayerNorm(C)),
    "GELU of tokens": lambda: tokens(nn.GELU()),
    "a residual block of tokens": lambda: tokens(Residual(nn.Linear(C, C))),
}
every_module = pytest.mark.parametrize("name", MODULES)


def built(name: str) -> tuple[Any, Tensor, int]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, example, dim = MODULES[name]()
        return model.eval(), example, dim


def lone_channels(value: Tensor, dim: int) -> list[bool]:
    """Return which channels of a value are zero, all else being alive."""
    rows = value.movedim(dim, 0).reshape(value.shape[dim], -1)
    gone = ~rows.any(1)
    assert bool((rows[~gone] != 0).any(0).all())
    return gone.tolist()


def entry(target: str, **settings: Any) -> dict[str, Any]:
    return {"op_names": ["mid"], "target_names": [target], "sparse_ratio": 0.5, **settings}


def evaluator(example: Any) -> SimpleNamespace:
    return SimpleNamespace(dummy_input=example)


@every_module
@pytest.mark.parametrize("granularity", ["default", "per_channel"])
@pytest.mark.parametrize("target", ["_input_", "_output_"])
def test_compress_when_a_value_is_a_target_then_whole_channels_of_it_go(name, target, granularity):
    model, example, dim = built(name)
    model(example)
    value = model.read if target == "_input_" else model.seen
    size_of = value.abs().mean(0, keepdim=True).movedim(dim, 0).flatten(1).sum(1)
    pruner = L1NormPruner(model, [entry(target, granularity=granularity)], evaluator(example))
    mask = pruner.compress()[1]["mid"][f"{target}0"]
    kept = mask.movedim(dim, 0).flatten(1)
    assert mask.shape == value.shape[:0] + (1, *value.shape[1:])
    assert (kept == kept[:, :1]).all()  # whole channels
    gone = size_of.argsort()[: C // 2]
    assert sorted((kept[:, 0] == 0).nonzero().flatten().tolist()) == sorted(gone.tolist())


@every_module
def test_compress_when_outputs_are_masked_then_the_module_returns_them_so(name):
    model, example, dim = built(name)
    model(example)
    dense = model.seen
    masks = L2NormPruner(model, [entry("_output_")], evaluator(example)).compress()[1]
    model(example)
    assert torch.equal(model.seen, dense * masks["mid"]["_output_0"])


class Step:
    """A loop of a few steps on noise."""

    def __init__(self, model: nn.Module, example: Tensor):
        self.example = example
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def evaluator(self, **more: Any) -> TorchEvaluator:
        return TorchEvaluator(self.train, self.optimizer, self.loss, **more)

    def loss(self, batch: Tensor, model: nn.Module) -> Tensor:
        return model(batch).square().mean()

    def train(self, model: nn.Module, optimizer: Any, step: Any, *_: Any) -> None:
        for _ in range(4):
            optimizer.zero_grad()
            step(torch.randn_like(self.example), model).backward()
            optimizer.step()


@every_module
@pytest.mark.parametrize("target", ["_input_", "_output_"])
def test_taylor_when_values_are_targets_then_its_gates_are_channels(name, target):
    model, example, dim = built(name)
    loop = Step(model, example)
    pruner = TaylorPruner(model, [entry(target)], loop.evaluator(dummy_input=example), 2)
    mask = pruner.compress(2, None)[1]["mid"][f"{target}0"]
    along = mask.movedim(dim, 0).flatten(1)
    assert (along == along[:, :1]).all()
    assert int(along[:, 0].sum()) == C // 2
    assert sum(n > 1 for n in mask.shape) == 1  # so that values may have any length


@pytest.mark.parametrize("kind", [L1NormPruner, FPGMPruner])
@pytest.mark.parametrize(("name", "other"), [("Conv2d", (9, 4)), ("ReLU of images", (3, 8))])
def test_forward_when_images_have_another_size_then_the_mask_of_channels_fits(kind, name, other):
    model, example, dim = built(name)
    masks = kind(model, [entry("_output_")], evaluator(example)).compress()[1]
    model(torch.randn(2, C, *other))
    kept = masks["mid"]["_output_0"].movedim(dim, 0).flatten(1)[:, 0].bool()
    assert int(kept.sum()) == C // 2
    assert not model.seen.movedim(dim, 0)[~kept].any()
    assert model.seen.movedim(dim, 0)[kept].any()


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d", "InstanceNorm2d", "Linear"])
def test_compress_when_a_call_has_no_batch_then_the_same_channels_go(name):
    model, example, dim = built(name)
    alone = example[0] if name != "Linear" else example[0, 0]
    L1NormPruner(model, [entry("_output_")], evaluator(alone)).compress()
    for given in (alone, alone.unsqueeze(0)):
        model(given)
        channels = dim if given is not alone or dim == -1 else dim - 1
        assert model.seen.ndim == given.ndim
        assert sum(lone_channels(model.seen, channels)) == C // 2


class Pyramid(nn.Module):
    """Returns its features by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"input": x * 1, "features": self.conv(x)}


@pytest.mark.parametrize("target", ["_output_features", "_output_1"])
def test_compress_when_an_output_is_in_a_dict_then_its_channels_are_found(target):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mid, self.after = Pyramid(), nn.Conv2d(C, C, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.mid(x)["features"])

    pruner = L1NormPruner(Net(), [entry(target)], evaluator(torch.randn(5, C, C, C)))
    mask = pruner.compress()[1]["mid"][target]
    assert sum(lone_channels(mask, 1)) == C // 2


# aligned to a weight: no score, and no dummy_input


def aligned_to(source: str, dims: list[int], **settings: Any) -> list[dict[str, Any]]:
    align = {"module_name": source, "target_name": "weight", "dims": dims}
    return [
        {"op_names": [source], "sparse_ratio": 0.5, "granularity": "out_channel"},
        {
            "op_names": ["mid"],
            "target_names": ["_output_"],
            "target_settings": {"_output_": {"align": align, **settings}},
        },
    ]


TOLD = [
    name
    for name in MODULES
    if not any(
        w in name
        for w in ("ReLU", "Pool", "Drop", "block", "Layer", "GELU", "hand", "two", "Up", "mixer")
    )
]


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("kind", ["l1", "taylor", "agp"])
def test_aligned_outputs_when_there_is_no_dummy_input_then_their_channels_follow(name, kind):
    model, example, dim = built(name)
    loop = Step(model, example)
    config = aligned_to("before", [0])
    pruner: Pruner = L1NormPruner(model, config)
    if kind == "taylor":
        pruner = TaylorPruner(model, config, loop.evaluator(), 2)
    if kind == "agp":
        pruner = AGPPruner(L1NormPruner(model, config), 1, 2, loop.evaluator())
    masks = pruner.compress(*((2, None) if kind != "l1" else ()))[1]
    model.eval()(example)
    gone = (masks["before"]["weight"].flatten(1).amax(1) == 0).tolist()
    assert lone_channels(model.seen, dim) == gone
    assert masks["mid"]["_output_0"].flatten().tolist() == [float(not g) for g in gone]


@pytest.mark.parametrize(
    ("name", "shape", "dim"),
    [("ReLU of images", (2, C, 9, 8), 1), ("GELU of tokens", (2, 9, C), -1)],
)
def test_aligned_outputs_when_only_their_length_tells_then_they_follow_there(name, shape, dim):
    model, _, _ = built(name)
    masks = L1NormPruner(model, aligned_to("before", [0])).compress()[1]
    model(torch.randn(shape).abs() + 1)
    kept = masks["mid"]["_output_0"].bool()
    assert not model.seen.movedim(dim, 0)[~kept].any()


def test_aligned_outputs_when_two_dimensions_have_their_length_then_asks_which():
    model, example, _ = built("ReLU of images")
    L1NormPruner(model, aligned_to("before", [0])).compress()
    with pytest.raises(MaskError, match=r"'mid._output_0'.*dimension 1 or 2 or 3.*granularity"):
        model(example)


@pytest.mark.parametrize("granularity", [[1, -1, -1], [[1, -1, -1], "front", 1]])
def test_aligned_outputs_when_a_granularity_says_where_then_they_lie_there(granularity):
    model, example, _ = built("ReLU of images")
    pruner = L1NormPruner(model, aligned_to("before", [0], granularity=granularity))
    kept = pruner.compress()[1]["mid"]["_output_0"].flatten().bool()
    model(example)
    assert not model.seen[:, ~kept].any()
    assert int(kept.sum()) == C // 2


def test_aligned_outputs_when_only_a_value_tells_then_asks_for_a_dummy_input():
    model, example, _ = built("Conv2d")
    config = aligned_to("before", [0], granularity=[C, C])
    with pytest.raises(ConfigError, match="dummy_input"):
        L1NormPruner(model, config).compress()
    masks = L1NormPruner(model, config, evaluator(example)).compress()[1]
    assert masks["mid"]["_output_0"].shape == (1, C, C, C)


# masks that broadcast


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 3, 1, 1), (8, 3, 1, 1), (3, 3), (1,), ()])
def test_update_masks_when_a_weights_mask_broadcasts_then_it_is_that_of_the_weight(shape):
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    mask = (torch.rand(shape) < 0.5).float() if shape else torch.tensor(1.0)
    pruner = L1NormPruner(model, [{"op_names": ["0"], "sparse_ratio": 0.5}])
    dense = model[0].weight.detach().clone()
    pruner.compress()
    pruner.update_masks({"0": {"weight": mask}})
    assert torch.equal(pruner.get_masks()["0"]["weight"], mask.expand(8, 3, 3, 3))
    assert torch.equal(model[0].weight, dense * mask)


@pytest.mark.parametrize("shape", [(8,), (8, 3), (2, 3, 3, 3), (1, 8, 3, 3, 3)])
def test_update_masks_when_a_mask_does_not_broadcast_then_says_so(shape):
    pruner = L1NormPruner(
        nn.Sequential(nn.Conv2d(3, 8, 3)), [{"op_names": ["0"], "sparse_ratio": 0.5}]
    )
    with pytest.raises(MaskError, match=r"'0.weight' is .* not \(8, 3, 3, 3\)"):
        pruner.update_masks({"0": {"weight": torch.ones(shape)}})


@pytest.mark.parametrize(
    "shape",
    [(1, C, C, C), (C, C, C), (C, 1, 1), (1, C, 1, 1), (C, 1), (1, 1, C), (C,), (1, 1, C, 1, C)],
)
def test_update_masks_when_an_outputs_mask_broadcasts_then_it_is_multiplied_so(shape):
    model, example, _ = built("Conv2d")
    model(example)
    dense, mask = model.seen, (torch.rand(shape) < 0.5).float()
    pruner = L1NormPruner(model, [entry("_output_")], evaluator(example))
    pruner.compress()
    pruner.update_masks({"mid": {"_output_0": mask}})
    model(example)
    along = mask.view(-1, 1, 1) if mask.ndim == 1 else mask  # a vector lies along the channels
    along = along[0] if along.ndim > 4 else along
    assert torch.equal(model.seen, dense * along)
    alone = torch.randn(C, C, C)
    model(alone)
    assert model.seen.shape == (C, C, C)


# inputs by keyword, and outputs by position


class Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Sum()
        self.by_name = True

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        return self.inner(x=x, y=y) if self.by_name else self.inner(x, y)


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        return {"sum": x + y * scale, "x": x * 1}


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize(
    ("target", "where"), [("_input_", "x"), ("_input_x", "x"), ("_input_1", "y"), ("_input_y", "y")]
)
def test_compress_when_an_input_is_given_by_name_or_place_then_both_find_it(by_name, target, where):
    model, example = Keyword(), torch.rand(3, 4) + 1
    model.by_name = by_name
    config = [{"op_names": ["inner"], "target_names": [target], "sparse_ratio": 0.5}]
    masks = L1NormPruner(model, config, evaluator(example)).compress()[1]["inner"]
    mask = masks[target + "0" if target == "_input_" else target]
    x = example * (mask if where == "x" else 1)
    y = (example + 1) * (mask if where == "y" else 1)
    assert torch.allclose(model(example)["sum"], x + y)
    model.by_name = not by_name
    assert torch.allclose(model(example)["sum"], x + y)


def test_compress_when_an_output_of_a_dict_is_named_by_its_place_then_it_is_masked():
    model, example = Keyword(), torch.rand(3, 4) + 1
    config = [{"op_names": ["inner"], "target_names": ["_output_1"], "sparse_ratio": 0.5}]
    mask = L1NormPruner(model, config, evaluator(example)).compress()[1]["inner"]["_output_1"]
    assert torch.equal(model(example)["x"], example * mask)
    assert list(model(example)) == ["sum", "x"]


def test_compress_when_an_input_is_not_given_then_says_what_was():
    config = [{"op_names": ["inner"], "target_names": ["_input_z"], "sparse_ratio": 0.5}]
    with pytest.raises(ConfigError, match=r"'inner._input_z'.*with 0 by position and 'x', 'y'"):
        L1NormPruner(Keyword(), config, evaluator(torch.ones(2, 4))).compress()


# bypass: made, and not put on


@pytest.mark.parametrize("target", ["weight", "_output_"])
def test_compress_when_the_method_is_bypass_then_the_mask_is_made_and_nothing_changes(target):
    model, example, _ = built("Conv2d")
    dense, weight = model(example), model.mid.weight.detach().clone()
    pruner = L1NormPruner(model, [entry(target, apply_method="bypass")], evaluator(example))
    (mask,) = [m for m in pruner.compress()[1]["mid"].values() if m is not None]
    assert float(mask.mean()) == 0.5
    assert torch.equal(model(example), dense)
    pruner.unwrap_model()
    assert torch.equal(model.mid.weight, weight)
    assert torch.equal(model(example), dense)


def test_compress_when_one_of_two_targets_is_bypass_then_only_the_other_is_put_on():
    model, example, _ = built("Conv2d")
    dense = model.mid.weight.detach().clone()
    config = [entry("weight", apply_method="bypass"), {"op_names": ["after"], "sparse_ratio": 0.5}]
    loop = Step(model, example)
    pruner = AGPPruner(L1NormPruner(model, config), 1, 2, loop.evaluator())
    masks = pruner.compress(2, None)[1]
    assert not (model.mid.weight == 0).any()
    assert (model.after.weight == 0).any()
    assert float(masks["mid"]["weight"].mean()) == 0.5
    assert dense.shape == model.mid.weight.shape


def test_movement_when_the_method_is_bypass_then_says_that_it_learns_through_its_masks():
    from secateur.nni.pruning import MovementPruner

    model, example, _ = built("Conv2d")
    pruner = MovementPruner(
        model, [entry("weight", apply_method="bypass")], Step(model, example).evaluator(), 1, 3
    )
    with pytest.raises(ConfigError, match=r"'mid.weight': apply_method 'bypass'.*'movement'"):
        pruner.compress(4, None)
