"""Masks of a module's inputs and outputs: scored on the dummy input, applied by hooks."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, MaskError
from secateur.nni.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner

PRUNERS = [LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner]
every_pruner = pytest.mark.parametrize("kind", PRUNERS)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


@pytest.fixture
def model() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture
def example() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def evaluator(dummy_input: Any) -> SimpleNamespace:
    return SimpleNamespace(dummy_input=dummy_input)


def output_of(name: str, **settings: Any) -> list[dict[str, Any]]:
    return [{"op_names": [name], "target_names": ["_output_"], "sparse_ratio": 0.5, **settings}]


# what is masked


@pytest.mark.parametrize("kind", [L1NormPruner, L2NormPruner, LevelPruner])
@pytest.mark.parametrize("side", ["_output_", "_output_0", "_input_", "_input_0"])
def test_compress_when_a_value_is_a_target_then_its_smallest_mean_magnitudes_go(
    model, example, kind, side
):
    fc2_input = model.fc1(example).relu()
    value = (fc2_input if "input" in side else model.fc2(fc2_input)).detach()
    config = [{"op_names": ["fc2"], "target_names": [side], "sparse_ratio": 0.5}]
    _, masks = kind(model, config, evaluator(example)).compress()
    (name, mask), *_ = masks["fc2"].items()
    size = value.shape[1]
    size_of = [sum(abs(float(row[i])) for row in value) for i in range(size)]
    gone = sorted(range(size), key=size_of.__getitem__)[: size // 2]
    assert name == side.rstrip("0") + "0"
    assert mask.tolist() == [[0.0 if i in gone else 1.0 for i in range(size)]]


@every_pruner
def test_compress_when_the_method_is_mul_then_masked_values_are_zero(model, example, kind):
    dense = model.fc1(example)
    pruner = kind(model, output_of("fc1"), evaluator(example))
    _, masks = pruner.compress()
    mask = masks["fc1"]["_output_0"]
    assert float(mask.mean()) == 0.5
    assert torch.equal(model.fc1(example), dense * mask)


@every_pruner
def test_compress_when_the_method_is_add_then_masked_values_vanish_in_a_softmax(
    model, example, kind
):
    dense = model.fc1(example)
    _, masks = kind(model, output_of("fc1", apply_method="add"), evaluator(example)).compress()
    gone = masks["fc1"]["_output_0"] == 0
    assert torch.equal(model.fc1(example), dense - 1000 * gone)
    assert not model.fc1(example).softmax(-1)[:, gone[0]].any()


def test_compress_when_an_input_is_masked_then_the_module_sees_it_so(model, example):
    config = [{"op_names": ["fc2"], "target_names": ["_input_"], "sparse_ratio": 0.5}]
    before = model.fc1(example).relu()
    _, masks = L1NormPruner(model, config, evaluator(example)).compress()
    seen = before * masks["fc2"]["_input_0"]
    assert torch.allclose(model(example), nn.functional.linear(seen, *model.fc2.parameters()))


def test_compress_when_weights_and_outputs_are_targets_then_both_are_masked(model, example):
    config = [
        {"op_names": ["fc1"], "target_names": ["weight", "bias", "_output_"], "sparse_ratio": 0.5}
    ]
    pruner = L1NormPruner(model, config, evaluator(example))
    _, masks = pruner.compress()
    assert sorted(masks["fc1"]) == ["_output_0", "bias", "weight"]
    assert torch.equal(model.fc1.weight == 0, masks["fc1"]["weight"] == 0)
    assert not model.fc1(example)[:, masks["fc1"]["_output_0"][0] == 0].any()


def test_compress_when_a_weight_is_aligned_to_an_output_then_it_follows(model, example):
    align = {"target_name": "_output_", "dims": [1]}
    config = [
        {
            "op_names": ["fc1"],
            "target_names": ["_output_", "bias"],
            "sparse_ratio": 0.5,
            "target_settings": {"bias": {"align": align}},
        }
    ]
    _, masks = L1NormPruner(model, config, evaluator(example)).compress()
    assert masks["fc1"]["bias"].tolist() == masks["fc1"]["_output_0"][0].tolist()


@pytest.mark.parametrize("batch", [1, 7])
def test_forward_when_the_batch_has_another_size_then_the_mask_still_fits(model, example, batch):
    L1NormPruner(model, output_of("fc1"), evaluator(example)).compress()
    assert model(torch.randn(batch, 4)).shape == (batch, 3)


def test_forward_when_a_sequence_has_another_length_then_a_mask_of_channels_still_fits(model):
    L1NormPruner(model, output_of("fc1"), evaluator(torch.randn(2, 6, 4))).compress()
    found = model.fc1(torch.randn(2, 9, 4))
    assert int((found == 0).all(0).all(0).sum()) == 4


def test_forward_when_the_mask_cannot_fit_then_says_which(model):
    config = output_of("fc1", granularity=[1, 1])
    L1NormPruner(model, config, evaluator(torch.randn(2, 6, 4))).compress()
    with pytest.raises(MaskError, match=r"'fc1._output_0' is \(1, 6, 8\).*\(2, 9, 8\)"):
        model(torch.randn(2, 9, 4))


def test_compress_when_the_dummy_input_is_a_dict_or_a_tuple_then_it_is_unpacked(model, example):
    masks = []
    for dummy in (example, (example,), {"x": example}):
        pruner = L1NormPruner(model, output_of("fc1"), evaluator(dummy))
        masks.append(pruner.compress()[1]["fc1"]["_output_0"])
        pruner.unwrap_model()
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_compress_when_the_model_trains_then_it_still_does_so_afterwards(example):
    model = nn.Sequential(OrderedDict(fc1=nn.Linear(4, 8), bn=nn.BatchNorm1d(8))).train()
    mean = model.bn.running_mean.clone()
    L1NormPruner(model, output_of("fc1"), evaluator(example)).compress()
    assert all(module.training for module in model.modules())
    assert torch.equal(model.bn.running_mean, mean)


# on, off, changed


@every_pruner
def test_unwrap_model_then_values_are_dense_again_and_no_hook_is_left(model, example, kind):
    before = model(example)
    pruner = kind(model, output_of("fc1"), evaluator(example))
    pruner.compress()
    assert not torch.equal(model(example), before)
    pruner.unwrap_model()
    assert torch.equal(model(example), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_update_masks_when_values_are_masked_then_the_new_mask_holds(model, example):
    before = model.fc1(example)
    pruner = L1NormPruner(model, output_of("fc1"), evaluator(example))
    pruner.compress()
    pruner.update_masks({"fc1": {"_output_0": torch.ones(1, 8)}})
    assert torch.equal(model.fc1(example), before)


def test_from_compressor_when_both_mask_one_value_then_the_masks_multiply(model, example):
    one = L1NormPruner(model, output_of("fc1"), evaluator(example))
    first = one.compress()[1]["fc1"]["_output_0"]
    two = L1NormPruner.from_compressor(one, output_of("fc1", sparse_ratio=0.75))
    both = two.compress()[1]["fc1"]["_output_0"]
    assert int(both.sum()) == 2
    assert not (both * (1 - first)).any()
    assert not model.fc1(example)[:, both[0] == 0].any()
    two.unwrap_model()
    assert not any(m._forward_hooks for m in model.modules())


# inputs and outputs that are not one tensor


Pair = namedtuple("Pair", ["left", "right"])


class Record(OrderedDict):  # as transformers' ModelOutput: a dict with attributes
    @property
    def left(self) -> Tensor:
        return self["left"]


class Splits(nn.Module):
    """Returns two tensors in the container that it was made with; takes a keyword."""

    def __init__(self, container: Any):
        super().__init__()
        self.container = container

    def forward(self, x: Tensor, *, scale: Tensor) -> Any:
        return self.container(x * scale, x - scale)


class Uses(nn.Module):
    def __init__(self, container: Any):
        super().__init__()
        self.split = Splits(container)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.split(x, scale=x + 1)
        left, right = self.seen.values() if isinstance(self.seen, dict) else self.seen
        return left + right


@pytest.mark.parametrize(
    ("container", "target", "key"),
    [
        (lambda a, b: (a, b), "_output_1", 1),
        (lambda a, b: [a, b], "_output_0", 0),
        (Pair, "_output_1", 1),
        (lambda a, b: {"left": a, "right": b}, "_output_left", "left"),
        (lambda a, b: Record(left=a, right=b), "_output_left", "left"),
    ],
    ids=["tuple", "list", "namedtuple", "dict", "ModelOutput"],
)
def test_compress_when_an_output_is_a_container_then_one_part_changes_and_its_class_stays(
    container, target, key, example
):
    model = Uses(container)
    model(example)
    before = model.seen
    config = [{"op_names": ["split"], "target_names": [target], "sparse_ratio": 0.5}]
    _, masks = L1NormPruner(model, config, evaluator(example)).compress()
    model(example)
    assert type(model.seen) is type(before)
    assert torch.equal(model.seen[key], before[key] * masks["split"][target])
    others = [k for k in (before if isinstance(before, dict) else range(2)) if k != key]
    assert all(torch.equal(model.seen[k], before[k]) for k in others)


def test_compress_when_an_input_is_a_keyword_then_it_is_found_by_its_name(example):
    model = Uses(lambda a, b: (a, b))
    config = [{"op_names": ["split"], "target_names": ["_input_scale"], "sparse_ratio": 0.5}]
    _, masks = L1NormPruner(model, config, evaluator(example)).compress()
    model(example)
    left, _ = model.seen
    gone = masks["split"]["_input_scale"][0] == 0
    assert int(gone.sum()) == 2
    assert not left[:, gone].any()


# what goes wrong


@every_pruner
@pytest.mark.parametrize("given", [None, SimpleNamespace(), evaluator(None)])
def test_compress_when_there_is_nothing_to_run_the_model_on_then_says_what_to_give(
    model, kind, given
):
    pruner = kind(model, output_of("fc1"), given)
    with pytest.raises(ConfigError, match=r"'fc1._output_0'.*give an evaluator with a dummy_input"):
        pruner.compress()
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("target", ["_output_1", "_output_logits", "_input_1", "_input_mask"])
def test_compress_when_there_is_no_such_value_then_names_it_and_leaves_no_hook(
    model, example, target
):
    config = [{"op_names": ["fc1"], "target_names": [target], "sparse_ratio": 0.5}]
    with pytest.raises(ConfigError, match=f"'fc1.{target}'"):
        L1NormPruner(model, config, evaluator(example)).compress()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_compress_when_the_forward_never_reaches_the_module_then_says_so(model, example):
    model.unused = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match=r"never reached 'unused._output_0'"):
        L1NormPruner(model, output_of("unused"), evaluator(example)).compress()


def test_compress_when_the_value_holds_no_floats_then_says_what_it_holds():
    model = nn.Sequential(nn.Embedding(9, 4))
    config = [{"op_names": ["0"], "target_names": ["_input_"], "sparse_ratio": 0.5}]
    with pytest.raises(ConfigError, match=r"'0._input_0' is a tensor of torch.int64"):
        L1NormPruner(model, config, evaluator(torch.arange(6).view(2, 3))).compress()


def test_init_when_a_weight_is_to_be_added_to_then_says_that_this_is_for_values(model):
    with pytest.raises(ConfigError, match="'add' is for inputs and outputs"):
        L1NormPruner(model, [{"op_names": ["fc1"], "sparse_ratio": 0.5, "apply_method": "add"}])
