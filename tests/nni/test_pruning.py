"""NNI's four pruners against its rules, written out with plain loops over Python lists."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import product
from math import floor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, MaskError, NoMatchError, ScoreError
from secateur.masking import dense
from secateur.nni.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner, Pruner

PRUNERS = [LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner]
every_pruner = pytest.mark.parametrize("kind", PRUNERS)
RATIOS = [0.0, 0.29, 0.5, 0.75]


class Net(nn.Module):
    """One layer of each kind with known targets; a forward that uses them all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.fc1 = nn.Linear(4, 12)
        self.fc2 = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.wide(self.bn(self.conv(x)).relu()).relu()).mean((2, 3))
        return self.fc2(self.fc1(x).relu())


@pytest.fixture
def model() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Net().eval()
        for parameter in net.parameters():
            nn.init.normal_(parameter)
    return net


@pytest.fixture
def example() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


# The rules once more, slowly.  A block is the list of the indices of its weights.

Blocks = list[list[tuple[int, ...]]]
LAYOUT = {  # granularity → block size per dimension; None is the whole dimension
    "element": lambda rank: [1] * rank,
    "out_channel": lambda rank: [1] + [None] * (rank - 1),
    "in_channel": lambda rank: [None, 1] + [None] * (rank - 2),
}


def blocks_of(shape: Sequence[int], granularity: str | Sequence[int]) -> Blocks:
    if isinstance(granularity, str):
        sizes = LAYOUT[granularity](len(shape))
    else:
        sizes = [1] * (len(shape) - len(granularity)) + [
            None if s == -1 else s for s in granularity
        ]
    sizes = [whole if size is None else size for size, whole in zip(sizes, shape, strict=True)]
    corners = product(*(range(0, n, size) for n, size in zip(shape, sizes, strict=True)))
    return [
        list(product(*(range(c, c + size) for c, size in zip(corner, sizes, strict=True))))
        for corner in corners
    ]


def block_values(weight: Tensor, blocks: Blocks) -> list[list[float]]:
    """Return the weights of each block; 0 beyond the end, where a block hangs over."""

    def at(index: tuple[int, ...]) -> float:
        inside = all(i < n for i, n in zip(index, weight.shape, strict=True))
        return float(weight[index]) if inside else 0.0

    return [[at(index) for index in block] for block in blocks]


def distance(a: list[float], b: list[float]) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


SCORE: dict[type, Callable[[list[list[float]]], list[float]]] = {
    LevelPruner: lambda rows: [sum(map(abs, row)) for row in rows],
    L1NormPruner: lambda rows: [sum(map(abs, row)) for row in rows],
    L2NormPruner: lambda rows: [sum(x * x for x in row) ** 0.5 for row in rows],
    FPGMPruner: lambda rows: [sum(distance(row, other) for other in rows) for row in rows],
}


def scores_of(kind: type[Pruner], weight: Tensor, granularity: str | Sequence[int]) -> list[float]:
    return SCORE[kind](block_values(weight.detach(), blocks_of(weight.shape, granularity)))


def lowest(scores: list[float], count: int, parts: int = 1) -> set[int]:
    """Return the positions of the ``count`` smallest scores of each of the equal parts."""
    size = len(scores) // parts
    gone: set[int] = set()
    for start in range(0, len(scores), size):
        gone |= set(sorted(range(start, start + size), key=scores.__getitem__)[:count])
    return gone


def mask_without(gone: set[int], shape: Sequence[int], granularity: str | Sequence[int]) -> Tensor:
    mask = torch.ones(tuple(shape))
    for number in gone:
        for index in blocks_of(shape, granularity)[number]:
            if all(i < n for i, n in zip(index, shape, strict=True)):
                mask[index] = 0
    return mask


def default(kind: type[Pruner]) -> str:
    return "element" if kind is LevelPruner else "out_channel"


def share(n: int, ratio: float) -> int:
    return floor(n * ratio + 1e-9)


def compressed(
    kind: type[Pruner], model: nn.Module, *config: dict[str, Any], evaluator: Any = None
) -> dict[str, dict[str, Tensor | None]]:
    _, masks = kind(model, list(config), evaluator).compress()
    return masks


def assert_same(masks: dict[str, dict[str, Any]], name: str, expected: Tensor) -> None:
    module, _, target = name.rpartition(".")
    found = masks[module][target]
    assert found.dtype == torch.float32, name
    assert found.shape == expected.shape, name
    assert torch.equal(found, expected), f"{name}: {int((found != expected).sum())} differ"


# sparse_ratio and granularity


@every_pruner
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("layer", ["conv", "wide", "bn", "fc1"])
def test_compress_when_given_a_ratio_then_the_floor_of_it_goes_smallest_first(
    model, kind, layer, ratio
):
    weight = model.get_submodule(layer).weight.detach().clone()
    masks = compressed(kind, model, {"op_names": [layer], "sparse_ratio": ratio})
    scores = scores_of(kind, weight, default(kind))
    gone = lowest(scores, share(len(scores), ratio))
    assert_same(masks, f"{layer}.weight", mask_without(gone, weight.shape, default(kind)))


@every_pruner
@pytest.mark.parametrize(
    ("layer", "granularity"),
    [
        ("conv", "out_channel"),
        ("conv", "in_channel"),
        ("fc1", "in_channel"),
        ("conv", [1, -1, -1, -1]),
        ("conv", [2, -1, -1, -1]),
        ("conv", [-1, -1]),
        ("conv", [3, 2, -1, -1]),  # blocks hang over both ends
        ("fc1", [2, 2]),
        ("fc1", [1, -1]),
        ("fc1", [-1, 1]),
        ("fc1", [4]),
    ],
)
def test_compress_when_given_a_granularity_then_whole_blocks_go(model, kind, layer, granularity):
    weight = model.get_submodule(layer).weight.detach().clone()
    masks = compressed(
        kind, model, {"op_names": [layer], "sparse_ratio": 0.5, "granularity": granularity}
    )
    scores = scores_of(kind, weight, granularity)
    gone = lowest(scores, share(len(scores), 0.5))
    assert_same(masks, f"{layer}.weight", mask_without(gone, weight.shape, granularity))


@every_pruner
@pytest.mark.parametrize(("granularity", "dim"), [("out_channel", 1), ("in_channel", 0)])
def test_compress_when_a_convolution_is_transposed_then_channels_are_the_other_dimension(
    model, kind, granularity, dim
):
    weight = model.up.weight.detach().transpose(0, 1).clone()
    masks = compressed(
        kind, model, {"op_names": ["up"], "sparse_ratio": 0.5, "granularity": granularity}
    )
    scores = scores_of(kind, weight, granularity)
    gone = lowest(scores, len(scores) // 2)
    expected = mask_without(gone, weight.shape, granularity).transpose(0, 1)
    assert_same(masks, "up.weight", expected)
    assert int((masks["up"]["weight"].transpose(0, dim).flatten(1).sum(1) == 0).sum()) == len(gone)


@every_pruner
def test_compress_when_all_should_go_then_one_block_stays_and_the_notes_say_so(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 1.0}])
    _, masks = pruner.compress()
    scores = scores_of(kind, dense(model.conv, "weight"), default(kind))
    gone = lowest(scores, len(scores) - 1)
    assert_same(masks, "conv.weight", mask_without(gone, model.conv.weight.shape, default(kind)))
    assert any("conv.weight" in note for note in pruner.notes)


# thresholds and bounds


@every_pruner
@pytest.mark.parametrize("share_below", [0.0, 0.25, 0.6])
@pytest.mark.parametrize(("low", "high"), [(None, None), (0.4, None), (None, 0.3), (0.1, 0.5)])
def test_compress_when_given_a_threshold_then_lower_scores_go_within_the_bounds(
    model, kind, share_below, low, high
):
    weight = model.conv.weight.detach().clone()
    scores = scores_of(kind, weight, "out_channel")
    below = int(share_below * len(scores))
    ranked = sorted(scores)
    threshold = (ranked[below] + (ranked[below - 1] if below else 0)) / 2
    if kind is LevelPruner:  # its score of a block is the mean
        threshold /= weight[0].numel()
    config = {
        "op_names": ["conv"],
        "sparse_threshold": threshold,
        "min_sparse_ratio": low,
        "max_sparse_ratio": high,
        "granularity": "out_channel",
    }
    masks = compressed(kind, model, config)
    count = below
    if low is not None and below / len(scores) < low:
        count = share(len(scores), low)
    if high is not None and below / len(scores) > high:
        count = share(len(scores), high)
    gone = lowest(scores, count)
    assert_same(masks, "conv.weight", mask_without(gone, weight.shape, "out_channel"))


@every_pruner
@pytest.mark.parametrize(
    ("ratio", "bounds", "expected"),
    [
        (0.1, {"min_sparse_ratio": 0.5}, 0.5),
        (0.9, {"max_sparse_ratio": 0.25}, 0.25),
        (0.5, {"min_sparse_ratio": 0.25, "max_sparse_ratio": 0.75}, 0.5),
    ],
)
def test_compress_when_a_ratio_is_out_of_bounds_then_the_bound_holds(
    model, kind, ratio, bounds, expected
):
    weight = model.conv.weight.detach().clone()
    masks = compressed(kind, model, {"op_names": ["conv"], "sparse_ratio": ratio, **bounds})
    scores = scores_of(kind, weight, default(kind))
    gone = lowest(scores, share(len(scores), expected))
    assert_same(masks, "conv.weight", mask_without(gone, weight.shape, default(kind)))


@every_pruner
@pytest.mark.parametrize("goal", [{}, {"min_sparse_ratio": 0.2}, {"max_sparse_ratio": 0.2}])
def test_init_when_an_entry_has_no_goal_then_says_which_target_lacks_it(model, kind, goal):
    with pytest.raises(ConfigError, match=r"entry 1: 'conv.weight' has no goal; give sparse_ratio"):
        kind(model, [{"op_names": ["conv"], **goal}])


# groups


def global_counts(members: list[tuple[list[float], float]], ratio: float) -> list[set[int]]:
    """The definition: take the smallest score of all while its elements fit into the share.

    The largest score of each member is not offered: one block of every layer stays.
    """
    ranked = sorted(
        (score, i, scores.index(score))
        for i, (scores, _) in enumerate(members)
        for score in sorted(scores)[:-1]
    )
    budget = ratio * sum(len(scores) * grain for scores, grain in members)
    gone: list[set[int]] = [set() for _ in members]
    spent = 0.0
    for _, i, j in ranked:
        spent += members[i][1]
        if spent > budget + 1e-9:
            break
        gone[i].add(j)
    return gone


@every_pruner
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.6])
def test_compress_when_layers_share_a_global_group_then_their_scores_are_ranked_together(
    model, kind, ratio
):
    layers = ["conv", "wide", "fc2"]
    weights = [model.get_submodule(name).weight.detach().clone() for name in layers]
    scores = [scores_of(kind, weight, default(kind)) for weight in weights]
    members = [(s, w.numel() / len(s)) for s, w in zip(scores, weights, strict=True)]
    masks = compressed(
        kind, model, {"op_names": layers, "sparse_ratio": ratio, "global_group_id": "g"}
    )
    for name, weight, gone in zip(layers, weights, global_counts(members, ratio), strict=True):
        assert_same(masks, f"{name}.weight", mask_without(gone, weight.shape, default(kind)))


@every_pruner
def test_compress_when_a_global_group_would_empty_a_layer_then_one_block_stays(model, kind):
    with torch.no_grad():
        model.fc2.weight *= 1e-6
        model.conv.weight *= 1e6
    pruner = kind(model, [{"op_names": ["conv", "fc2"], "sparse_ratio": 0.3, "global_group_id": 1}])
    _, masks = pruner.compress()
    assert masks["fc2"]["weight"].any()
    assert any("fc2.weight" in note for note in pruner.notes)


@every_pruner
def test_compress_when_a_global_group_has_bounds_then_each_member_keeps_them(model, kind):
    layers = ["conv", "wide", "fc1"]
    config = {
        "op_names": layers,
        "sparse_ratio": 0.5,
        "global_group_id": "g",
        "min_sparse_ratio": 0.25,
        "max_sparse_ratio": 0.75,
    }
    masks = compressed(kind, model, config)
    for name in layers:
        gone = 1 - float(masks[name]["weight"].mean())
        assert 0.25 <= gone <= 0.75, f"{name} lost {gone:.0%}"


@every_pruner
@pytest.mark.parametrize(
    ("ratio", "bound"), [(0.2, {"min_sparse_ratio": 0.5}), (0.8, {"max_sparse_ratio": 0.5})]
)
def test_compress_when_a_global_ratio_is_beyond_all_bounds_then_every_member_is_at_its_bound(
    model, kind, ratio, bound
):
    layers = ["conv", "wide", "fc1"]
    config = {"op_names": layers, "sparse_ratio": ratio, "global_group_id": "g", **bound}
    masks = compressed(kind, model, config)
    assert {name: float(masks[name]["weight"].mean()) for name in layers} == dict.fromkeys(
        layers, 0.5
    )


@every_pruner
@pytest.mark.parametrize("ratio", RATIOS)
def test_compress_when_layers_depend_then_scores_are_averaged_and_the_mask_is_one(
    model, kind, ratio
):
    layers = ["conv", "wide"]
    weights = [model.get_submodule(name).weight.detach().clone() for name in layers]
    config = {
        "op_names": layers,
        "sparse_ratio": ratio,
        "dependency_group_id": 7,
        "granularity": "out_channel",
    }
    masks = compressed(kind, model, config)
    scores = [scores_of(kind, weight, "out_channel") for weight in weights]
    if kind is LevelPruner:  # its score of a block is the mean
        scores = [[s / w[0].numel() for s in each] for each, w in zip(scores, weights, strict=True)]
    mean = [(a + b) / 2 for a, b in zip(*scores, strict=True)]
    gone = lowest(mean, share(8, ratio))
    for name, weight in zip(layers, weights, strict=True):
        assert_same(masks, f"{name}.weight", mask_without(gone, weight.shape, "out_channel"))


@every_pruner
def test_compress_when_a_target_is_in_both_kinds_of_group_then_the_dependency_decides(model, kind):
    both = {"op_names": ["conv", "wide"], "sparse_ratio": 0.5, "granularity": "out_channel"}
    alone = compressed(kind, copy.deepcopy(model), {**both, "dependency_group_id": 1})
    masks = compressed(
        kind,
        model,
        {**both, "dependency_group_id": 1, "global_group_id": 2},
        {"op_names": ["fc1"], "sparse_ratio": 0.5, "global_group_id": 2},
    )
    assert torch.equal(masks["conv"]["weight"], alone["conv"]["weight"])


@every_pruner
@pytest.mark.parametrize("ratio", RATIOS)
def test_compress_when_the_metric_is_in_blocks_then_each_block_loses_its_share(model, kind, ratio):
    config = {
        "op_names": ["wide"],
        "sparse_ratio": ratio,
        "internal_metric_block": 4,
        "granularity": "out_channel",
    }
    weight = model.wide.weight.detach().clone()
    masks = compressed(kind, model, config)
    gone = lowest(scores_of(kind, weight, "out_channel"), share(2, ratio), parts=4)
    assert_same(masks, "wide.weight", mask_without(gone, weight.shape, "out_channel"))


@every_pruner
def test_compress_when_members_have_different_metric_blocks_then_their_lcm_counts(model, kind):
    common = {"sparse_ratio": 0.5, "dependency_group_id": "d", "granularity": "out_channel"}
    with torch.no_grad():
        model.conv.weight.copy_(torch.arange(1.0, 9.0)[:, None, None, None].expand(8, 3, 3, 3))
        model.conv.weight += 0.01 * torch.randn(
            8, 3, 3, 3, generator=torch.Generator().manual_seed(2)
        )
    masks = compressed(
        kind,
        model,
        {"op_names": ["conv"], "internal_metric_block": 2, **common},
        {"op_names": ["wide"], "internal_metric_block": 4, **common},
    )
    kept = masks["conv"]["weight"].flatten(1)[:, 0]
    assert kept.reshape(4, 2).sum(1).tolist() == [1, 1, 1, 1]
    assert torch.equal(masks["wide"]["weight"].flatten(1)[:, 0], kept)


@every_pruner
@pytest.mark.parametrize(
    ("first", "second", "word"),
    [
        ({"sparse_ratio": 0.5}, {"sparse_ratio": 0.25}, "sparse_ratio"),
        ({"sparse_threshold": 0.5}, {"sparse_threshold": 0.25}, "sparse_threshold"),
        (
            {"sparse_ratio": 0.5, "max_sparse_ratio": 0.5},
            {"sparse_ratio": 0.5, "max_sparse_ratio": 0.1},
            "max_sparse_ratio",
        ),
    ],
)
def test_init_when_members_of_a_dependency_group_want_different_things_then_says_what(
    model, kind, first, second, word
):
    group = {"dependency_group_id": "d", "granularity": "out_channel"}
    with pytest.raises(ConfigError, match=f"'d': its members must have one {word}"):
        kind(
            model,
            [{"op_names": ["conv"], **first, **group}, {"op_names": ["wide"], **second, **group}],
        )


# biases, target_settings, exclude, later entries


@every_pruner
def test_compress_when_a_channel_goes_then_its_bias_goes(model, kind):
    config = {"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5, "granularity": "out_channel"}
    masks = compressed(kind, model, config)
    for name in ("conv", "fc1", "fc2"):
        alive = [1.0 if channel.any() else 0.0 for channel in masks[name]["weight"]]
        assert masks[name]["bias"].tolist() == alive, name
        assert 0 in alive, name


@every_pruner
def test_compress_when_a_convolution_is_transposed_then_the_bias_follows_its_outputs(model, kind):
    masks = compressed(
        kind, model, {"op_names": ["up"], "sparse_ratio": 0.5, "granularity": "out_channel"}
    )
    alive = [1.0 if masks["up"]["weight"][:, i].any() else 0.0 for i in range(4)]
    assert masks["up"]["bias"].tolist() == alive
    assert sum(alive) == 2


@every_pruner
def test_compress_when_targets_are_named_then_only_those_are_masked(model, kind):
    masks = compressed(
        kind, model, {"op_names": ["conv"], "target_names": ["weight"], "sparse_ratio": 0.5}
    )
    assert {name: list(targets) for name, targets in masks.items()} == {"conv": ["weight"]}


@every_pruner
def test_compress_when_a_bias_has_its_own_setting_then_it_is_scored_by_itself(model, kind):
    bias = model.fc1.bias.detach().clone()
    config = {
        "op_names": ["fc1"],
        "sparse_ratio": 0.5,
        "target_settings": {"bias": {"sparse_ratio": 0.75, "granularity": "element"}},
    }
    masks = compressed(kind, model, config)
    gone = lowest(scores_of(kind, bias, "element"), 9)
    assert_same(masks, "fc1.bias", mask_without(gone, bias.shape, "element"))
    assert float(masks["fc1"]["weight"].mean()) == 0.5


@every_pruner
def test_compress_when_a_target_is_aligned_to_another_module_then_it_follows_its_mask(model, kind):
    masks = compressed(
        kind,
        model,
        {"op_names": ["conv"], "sparse_ratio": 0.5, "granularity": "out_channel"},
        {
            "op_names": ["bn"],
            "target_names": ["weight", "bias"],
            "target_settings": {
                "weight": {"align": {"module_name": "conv", "target_name": "weight", "dims": [0]}},
                "bias": {"align": {"module_name": "conv", "target_name": "bias"}},
            },
        },
    )
    alive = masks["conv"]["weight"].flatten(1).amax(1)
    assert torch.equal(masks["bn"]["weight"], alive)
    assert torch.equal(masks["bn"]["bias"], alive)


@every_pruner
def test_compress_when_modules_are_excluded_then_they_have_no_masks(model, kind):
    masks = compressed(
        kind,
        model,
        {"op_types": ["Conv2d", "Linear"], "exclude_op_names": ["fc2"], "sparse_ratio": 0.5},
        {"op_names_re": ["wid.*"], "exclude": True},
    )
    assert sorted(masks) == ["conv", "fc1"]


@every_pruner
def test_compress_when_a_later_entry_names_a_module_again_then_it_decides(model, kind):
    masks = compressed(
        kind,
        model,
        {"op_types": ["Linear"], "sparse_ratio": 0.25},
        {"op_names": ["fc1"], "sparse_ratio": 0.75},
    )
    assert float(masks["fc1"]["weight"].mean()) == 0.25
    assert float(masks["fc2"]["weight"].mean()) == 0.75


# masks on the model


@every_pruner
def test_compress_then_returns_the_model_and_its_masks_are_on(model, kind, example):
    dense = copy.deepcopy(model)
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    same, masks = pruner.compress()
    assert same is model
    assert pruner.bound_model is model
    with torch.no_grad():
        for name, targets in masks.items():
            for target, mask in targets.items():
                if mask is not None:
                    dense.get_submodule(name).get_parameter(target).mul_(mask)
        assert torch.equal(model(example), dense(example))


@every_pruner
def test_compress_when_a_layer_has_no_bias_then_its_mask_is_none(model, kind):
    masks = compressed(kind, model, {"op_types": ["Conv2d"], "sparse_ratio": 0.5})
    assert masks["wide"]["bias"] is None
    assert {name: set(targets) for name, targets in masks.items()} == {
        "conv": {"weight", "bias"},
        "wide": {"weight", "bias"},
    }


@every_pruner
def test_get_masks_when_called_before_compress_then_they_are_none(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    assert pruner.get_masks() == {"conv": {"weight": None, "bias": None}}


@every_pruner
def test_get_masks_when_changed_by_the_caller_then_the_pruner_keeps_its_own(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    masks["conv"]["weight"].zero_()
    assert pruner.get_masks()["conv"]["weight"].any()
    assert model.conv.weight.any()


@every_pruner
def test_generate_masks_then_nothing_is_on_until_wrap_model(model, kind, example):
    before = model(example)
    pruner = kind(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    masks = pruner.generate_masks()
    assert torch.equal(model(example), before)
    pruner.wrap_model()
    assert torch.equal(model.conv.weight == 0, masks["conv"]["weight"] == 0)


@every_pruner
def test_compress_when_called_twice_then_the_masks_are_the_same(model, kind):
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, first = pruner.compress()
    _, second = pruner.compress(10, 1)
    assert torch.equal(first["conv"]["weight"], second["conv"]["weight"])


@every_pruner
def test_update_masks_when_masks_are_on_then_dense_weights_come_back(model, kind, example):
    dense = copy.deepcopy(model)
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    assert not torch.equal(model(example), dense(example))
    pruner.update_masks(
        {
            m: {t: None if k is None else torch.ones_like(k) for t, k in ts.items()}
            for m, ts in masks.items()
        }
    )
    assert torch.equal(model(example), dense(example))


@every_pruner
def test_update_masks_when_given_what_get_masks_returned_then_nothing_changes(model, kind, example):
    first = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    first.compress()
    pruner = LevelPruner.from_compressor(first, [{"op_names": ["fc1"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    before = model(example)
    pruner.update_masks(masks)
    assert torch.equal(model(example), before)
    assert torch.equal(pruner.get_masks()["conv"]["weight"], masks["conv"]["weight"])


@every_pruner
def test_update_masks_when_masks_are_off_then_they_wait_for_wrap_model(model, kind):
    pruner = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    mask = torch.ones_like(model.conv.weight)
    mask[:3] = 0
    pruner.update_masks({"conv": {"weight": mask}})
    assert model.conv.weight[:3].all()
    pruner.wrap_model()
    assert not model.conv.weight[:3].any()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"cnv": {"weight": torch.ones(1)}}, r"'cnv.weight' is no target.*'conv.weight'"),
        ({"conv": {"wieght": torch.ones(1)}}, r"'conv.wieght' is no target.*'conv.weight'"),
        ({"fc1": {"weight": torch.ones(1)}}, r"'fc1.weight' is no target"),
        (
            {"conv": {"weight": torch.ones(8, 3, 3)}},
            r"'conv.weight' is \(8, 3, 3\), not \(8, 3, 3, 3\)",
        ),
        ({"conv": {"weight": torch.full((8, 3, 3, 3), 0.5)}}, "values other than 0 and 1"),
        ({"conv": {"weight": torch.full((8, 3, 3, 3), torch.nan)}}, "values other than 0 and 1"),
        ({"conv": {"weight": [1, 0]}}, "'conv.weight' is a list, not a tensor"),
    ],
)
def test_update_masks_when_a_mask_does_not_fit_then_says_so_and_changes_nothing(
    model, masks, message
):
    pruner = L1NormPruner(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    pruner.compress()
    before = pruner.get_masks()["conv"]
    good = {"conv": {"bias": torch.zeros(8)}}
    with pytest.raises(MaskError, match=message):
        pruner.update_masks({**good, **masks} if "conv" not in masks else masks)
    after = pruner.get_masks()["conv"]
    assert all(torch.equal(before[name], after[name]) for name in before)


@every_pruner
def test_unwrap_model_then_the_model_is_bare_and_keeps_its_zeros(model, kind, example):
    keys = list(model.state_dict())
    parameters = dict(model.named_parameters())
    classes = [type(module) for module in model.modules()]
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    masked = model(example)
    assert pruner.unwrap_model() is model
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(example), masked)
    assert not model.conv.weight[masks["conv"]["weight"] == 0].any()


@every_pruner
def test_unwrap_model_when_nothing_is_on_then_the_model_is_as_before(model, kind):
    state = copy.deepcopy(model.state_dict())
    kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}]).unwrap_model()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@every_pruner
def test_training_when_masks_are_on_then_kept_weights_learn_and_masked_ones_stay_zero(
    model, kind, example
):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    _, masks = kind(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}]).compress()
    before = model.conv.weight.detach().clone()
    model(example).square().sum().backward()
    optimizer.step()
    gone = masks["conv"]["weight"] == 0
    assert not model.conv.weight[gone].any()
    assert not torch.equal(model.conv.weight[~gone], before[~gone])


# from_compressor


@every_pruner
@pytest.mark.parametrize("first", PRUNERS)
def test_from_compressor_when_both_mask_one_target_then_the_masks_multiply(
    model, kind, first, example
):
    alone = compressed(kind, copy.deepcopy(model), {"op_names": ["conv"], "sparse_ratio": 0.5})[
        "conv"
    ]["weight"]
    one = first(model, [{"op_names": ["conv", "fc1"], "sparse_ratio": 0.25}])
    _, masks = one.compress()
    two = kind.from_compressor(one, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    assert isinstance(two, kind)
    same, both = two.compress()
    assert same is model
    assert torch.equal(both["conv"]["weight"], masks["conv"]["weight"] * alone)
    assert torch.equal(both["fc1"]["weight"], masks["fc1"]["weight"])
    assert torch.equal(model.conv.weight == 0, both["conv"]["weight"] == 0)
    masked = model(example)
    two.unwrap_model()
    assert not [key for key in model.state_dict() if "parametrizations" in key]
    assert torch.equal(model(example), masked)


def test_from_compressor_when_three_are_fused_then_all_masks_hold(model):
    one = LevelPruner(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}])
    one.compress()
    two = L1NormPruner.from_compressor(one, [{"op_names": ["wide"], "sparse_ratio": 0.5}])
    two.compress()
    three = FPGMPruner.from_compressor(two, [{"op_types": ["Linear"], "sparse_ratio": 0.5}])
    _, masks = three.compress()
    assert sorted(masks) == ["conv", "fc1", "fc2", "wide"]
    three.unwrap_model()
    for name in masks:
        assert torch.equal(model.get_submodule(name).weight == 0, masks[name]["weight"] == 0), name


def test_from_compressor_when_given_an_evaluator_then_it_is_used_and_else_inherited(model):
    one = L1NormPruner(model, [{"op_names": ["conv"], "sparse_ratio": 0.5}], "first")
    config = [{"op_names": ["fc1"], "sparse_ratio": 0.5}]
    assert L1NormPruner.from_compressor(one, config).evaluator == "first"
    assert L1NormPruner.from_compressor(one, config, "second").evaluator == "second"
    assert L1NormPruner.from_compressor(one, config, evaluator="third").evaluator == "third"


# what goes wrong


@every_pruner
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_compress_when_a_weight_is_not_finite_then_score_error_and_the_model_is_untouched(
    model, kind, value
):
    with torch.no_grad():
        model.wide.weight[1, 0, 0, 0] = value
    keys = list(model.state_dict())
    conv = model.conv.weight.detach().clone()
    pruner = kind(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    with pytest.raises(ScoreError, match=r"wide\.weight"):
        pruner.compress()
    assert list(model.state_dict()) == keys
    assert torch.equal(model.conv.weight, conv)


@every_pruner
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"op_names": ["cov"], "sparse_ratio": 0.5}, "Did you mean 'conv'"),
        ({"op_types": ["Conv2D"], "sparse_ratio": 0.5}, "Did you mean 'Conv2d'"),
    ],
)
def test_init_when_a_selector_matches_nothing_then_names_the_nearest(model, kind, entry, message):
    with pytest.raises(NoMatchError, match=message):
        kind(model, [entry])


@every_pruner
def test_init_when_the_config_list_is_wrong_then_all_problems_are_told(model, kind):
    with pytest.raises(ConfigError) as caught:
        kind(model, [{"op_names": ["conv"], "sparsty_ratio": 1}, {"sparse_ratio": 2}])
    assert len(caught.value.problems) >= 3


def test_fpgm_when_a_layer_is_wide_then_no_cube_of_distances_is_built():
    layer = nn.Conv2d(256, 1024, 3, bias=False)  # n x n x d would be 9.6 GB
    masks = compressed(FPGMPruner, layer, {"op_types": ["Conv2d"], "sparse_ratio": 0.5})
    assert int(masks[""]["weight"].flatten(1).amax(1).sum()) == 512


@every_pruner
def test_compress_when_the_model_is_one_layer_then_its_name_is_empty(kind):
    layer = nn.Linear(6, 4)
    pruner = kind(layer, [{"op_types": ["Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    assert float(masks[""]["weight"].mean()) == 0.5
    pruner.update_masks(masks)
    assert list(pruner.unwrap_model().state_dict()) == ["weight", "bias"]


@every_pruner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_compress_when_weights_are_of_another_dtype_then_they_stay_so(model, kind, dtype):
    model.to(dtype)
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    assert model.conv.weight.dtype == dtype
    assert float(masks["conv"]["weight"].mean()) == 0.5
    assert {p.dtype for p in pruner.unwrap_model().parameters()} == {dtype}
