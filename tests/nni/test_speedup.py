"""ModelSpeedup: from masks, in whatever form, to a smaller model that computes the same."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import MaskError, ShrinkError, TraceError, VerificationError
from secateur.masks.masking import is_masked, masks_on, take_off
from secateur.nni.pruning import FPGMPruner, L1NormPruner, L2NormPruner, LevelPruner
from secateur.nni.speedup import ModelSpeedup, load_masks
from tests import zoo

PRUNERS = [LevelPruner, L1NormPruner, L2NormPruner, FPGMPruner]
CONVS = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
Masks = dict[str, dict[str, Tensor | None]]


class Residual(nn.Module):
    """Two convolutions that are added, with nothing between that could emit a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.right = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x) + self.right(x)).relu())


@pytest.fixture(params=["resnet18", "mobilenet_v2"])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    return zoo.build(request.param)


@pytest.fixture
def residual() -> Residual:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Residual().eval()


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def multiplied(
    model: nn.Module, masks: dict[str, Tensor], folded: dict[str, Tensor] | None = None
) -> nn.Module:
    """Return a copy of a bare model with masks multiplied in and what was folded added."""
    model = copy.deepcopy(model)
    state = model.state_dict()
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
        for name, amount in (folded or {}).items():
            state[name].add_(amount)
    return model


def gap(a: nn.Module, b: nn.Module, example: Tensor) -> float:
    """Return the largest difference of two models' outputs, relative to the largest output."""
    with torch.no_grad():
        first, second = a(example), b(example)
    return float((first - second).abs().max() / first.abs().max())


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def channels(*gone: int, size: int = 8, inputs: int = 3) -> Tensor:
    mask = torch.ones(size, inputs, 3, 3)
    mask[list(gone)] = 0
    return mask


def l1_masks(model: nn.Module) -> Masks:
    pruner = L1NormPruner(model, CONVS)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    return masks


# exact, on networks


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if i > 1 else ()) for i, kind in enumerate(PRUNERS)],
)
def test_speedup_model_after_compress_and_unwrap_then_equals_the_masked_model(network, kind):
    model, example = network
    dense, before = copy.deepcopy(model), params(model)
    pruner = kind(model, CONVS)
    _, masks = pruner.compress()
    pruner.unwrap_model()
    speedup = ModelSpeedup(model, example, masks)
    assert speedup.speedup_model() is model
    completed = speedup.result.masks
    for module, targets in masks.items():  # the masks that were given are all in it
        for target, mask in targets.items():
            if mask is not None:
                assert not (completed[f"{module}.{target}"] & (mask == 0)).any(), module
    assert gap(multiplied(dense, completed, speedup.result.folded), model, example) < 1e-5
    assert speedup.result.verification.passed
    if kind is not LevelPruner:  # single weights leave no channel empty
        assert params(model) < 0.9 * before


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if i else ()) for i, kind in enumerate(PRUNERS)],
)
def test_speedup_model_when_masks_are_still_on_then_the_result_is_the_same(network, kind):
    model, example = network
    pruner = kind(model, CONVS)
    _, masks = pruner.compress()
    unwrapped = copy.deepcopy(model)
    take_off(unwrapped)
    small = ModelSpeedup(model, example, masks).speedup_model()
    other = ModelSpeedup(unwrapped, example, masks).speedup_model()
    assert not is_masked(small)
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: p.shape for n, p in other.named_parameters()
    }
    assert gap(other, small, example) == 0


def test_speedup_model_then_classes_and_paths_stay_and_sizes_are_true(residual, image):
    paths = [(name, type(module)) for name, module in residual.named_modules()]
    masks = {"left": {"weight": channels(0, 5)}, "right": {"weight": channels(0, 5)}}
    ModelSpeedup(residual, image, masks).speedup_model()
    assert [(name, type(module)) for name, module in residual.named_modules()] == paths
    assert (residual.left.out_channels, residual.head.in_channels) == (6, 6)


# where masks come from


def saved_with_torch(masks: Masks, folder: Path) -> Path:
    torch.save(masks, folder / "masks.pth")
    return folder / "masks.pth"


def saved_as_nni_does(masks: Masks, folder: Path) -> Path:
    nested: defaultdict[str, dict[str, Tensor | None]] = defaultdict(dict)
    nested.update(masks)
    torch.save(nested, folder / "masks.pth")
    return folder / "masks.pth"


def saved_as_safetensors(masks: Masks, folder: Path) -> Path:
    flat = {f"{m}.{t}": k for m, ts in masks.items() for t, k in ts.items() if k is not None}
    save_file(flat, folder / "masks.safetensors")
    return folder / "masks.safetensors"


@pytest.mark.parametrize("save", [saved_with_torch, saved_as_nni_does, saved_as_safetensors])
@pytest.mark.parametrize("kind_of_path", [str, Path])
def test_speedup_model_when_masks_are_in_a_file_then_the_result_is_the_same(
    residual, image, save, kind_of_path, tmp_path
):
    masks = l1_masks(residual)
    twin = copy.deepcopy(residual)
    ModelSpeedup(residual, image, masks).speedup_model()
    path = kind_of_path(save(masks, tmp_path))
    ModelSpeedup(twin, image, path, "cpu").speedup_model()
    assert residual.left.weight.shape == twin.left.weight.shape
    assert gap(residual, twin, image) == 0


def test_masks_when_another_library_calls_defaultdict_safe_then_they_load_and_it_stays_so(
    residual, image, tmp_path
):
    masks = l1_masks(residual)
    with torch.serialization.safe_globals([defaultdict]):
        loaded = ModelSpeedup(residual, image, saved_as_nni_does(masks, tmp_path)).masks
        assert defaultdict in torch.serialization.get_safe_globals()
    assert loaded.keys() == masks.keys()
    assert type(loaded) is dict


def test_speedup_model_when_masks_are_bool_then_they_mean_the_same(residual, image):
    masks = {"left": {"weight": channels(1).bool()}, "right": {"weight": channels(1).bool()}}
    ModelSpeedup(residual, image, masks).speedup_model()
    assert residual.left.out_channels == 7


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("masks.pth", b""),
        ("masks.pth", b"not a file of torch"),
        ("masks.pth", b"PK\x03\x04 nor a zip"),
        ("masks.safetensors", b""),
        ("masks.safetensors", b"\xff" * 64),
    ],
)
def test_init_when_a_file_is_damaged_then_mask_error_names_it(
    residual, image, tmp_path, name, content
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MaskError, match=name):
        ModelSpeedup(residual, image, tmp_path / name)


@pytest.mark.parametrize("value", [{"left.weight": torch.ones(1)}, [1, 2], torch.ones(3)])
def test_init_when_a_file_holds_something_else_then_says_what_form_it_must_have(
    residual, image, tmp_path, value
):
    torch.save(value, tmp_path / "state.pth")
    with pytest.raises(
        MaskError, match=r"holds no masks of the form \{module: \{target: tensor\}\}"
    ):
        ModelSpeedup(residual, image, tmp_path / "state.pth")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_load_masks_when_a_file_would_run_code_then_it_does_not(tmp_path, capsys):
    torch.save({"left": {"weight": Evil()}}, tmp_path / "masks.pth")
    with pytest.raises(MaskError, match="masks.pth is no file of masks"):
        load_masks(tmp_path / "masks.pth")
    assert capsys.readouterr().out == ""


def test_init_when_there_is_no_such_file_then_says_so(residual, image, tmp_path):
    with pytest.raises(FileNotFoundError):
        ModelSpeedup(residual, image, tmp_path / "none.pth")


# masks that are partial, or disagree


def test_speedup_model_when_masks_disagree_across_a_residual_then_only_what_both_lack_goes(
    residual, image
):
    dense = copy.deepcopy(residual)
    masks = {"left": {"weight": channels(0, 1, 2)}, "right": {"weight": channels(2, 3)}}
    speedup = ModelSpeedup(residual, image, masks)
    speedup.speedup_model()
    assert residual.left.out_channels == 7
    assert gap(multiplied(dense, speedup.result.masks), residual, image) < 1e-5
    assert torch.equal(speedup.result.masks["left.weight"], channels(0, 1, 2).bool())
    assert any("masked in some slices" in note for note in speedup.result.notes)


def test_speedup_model_when_only_one_side_of_a_residual_is_masked_then_nothing_goes(
    residual, image
):
    dense = copy.deepcopy(residual)
    mask = channels(0, 1)
    speedup = ModelSpeedup(residual, image, {"left": {"weight": mask}})
    speedup.speedup_model()
    assert params(residual) == params(dense)
    assert gap(multiplied(dense, {"left.weight": mask}), residual, image) < 1e-5
    assert speedup.result.notes


def test_speedup_model_when_only_weights_are_masked_then_the_bias_is_completed_and_told(image):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    dense = copy.deepcopy(model)
    with torch.no_grad():
        model[0].bias.fill_(1.0)
        dense[0].bias.fill_(1.0)
    speedup = ModelSpeedup(model, image, {"0": {"weight": channels(4, 7)}})
    speedup.speedup_model()
    assert model[0].out_channels == 6
    assert speedup.result.masks["0.bias"].tolist() == [i not in (4, 7) for i in range(8)]
    assert gap(multiplied(dense, {"0.weight": channels(4, 7)}), model, image) < 1e-5
    note = "0: 2 removed positions emitted a constant; it is folded into 2"
    assert note in speedup.result.notes
    assert not speedup.result.warnings


def test_speedup_model_when_a_constant_cannot_be_folded_exactly_then_a_warning_is_logged(
    image, caplog
):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    speedup = ModelSpeedup(model, image, {"0": {"weight": channels(4, 7)}})
    speedup.speedup_model()
    (warning,) = speedup.result.warnings
    assert warning in caplog.text
    assert "those of the masks given" in warning


def test_speedup_model_when_a_reader_masks_the_channel_then_it_goes_too(image):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    mask = torch.ones(4, 8, 1, 1)
    mask[:, [2, 3]] = 0
    speedup = ModelSpeedup(model, image, {"2": {"weight": mask}})
    speedup.speedup_model()
    assert model[0].out_channels == 6
    assert speedup.result.verification.passed


def test_speedup_model_when_everything_is_masked_then_one_channel_stays_and_it_is_told(
    residual, image
):
    masks = {"left": {"weight": channels(*range(8))}, "right": {"weight": channels(*range(8))}}
    speedup = ModelSpeedup(residual, image, masks)
    speedup.speedup_model()
    assert residual.left.out_channels == 1
    assert any("all positions are masked; one stays" in note for note in speedup.result.notes)


@pytest.mark.parametrize(
    "masks", [{}, {"left": {}}, {"left": {"weight": None, "bias": None}}], ids=str
)
def test_speedup_model_when_there_are_no_masks_then_nothing_goes(residual, image, masks):
    dense = copy.deepcopy(residual)
    ModelSpeedup(residual, image, masks).speedup_model()
    assert gap(dense, residual, image) == 0


def test_speedup_model_when_inputs_and_outputs_have_masks_then_says_that_they_cut_nothing(
    residual, image
):
    masks = {"left": {"weight": channels(0), "_output_0": torch.ones(1, 8, 8, 8)}}
    speedup = ModelSpeedup(residual, image, masks)
    speedup.speedup_model()
    assert "masks of inputs and outputs cut nothing: left._output_0" in speedup.result.notes


def test_speedup_model_when_more_masks_are_on_than_are_given_then_they_count_too(residual, image):
    entry = {"op_names": ["left", "right"], "sparse_ratio": 0.5, "dependency_group_id": 0}
    L1NormPruner(residual, [entry]).compress()
    on = masks_on(residual)
    masked = copy.deepcopy(residual)
    ModelSpeedup(residual, image, {"left": {"weight": on["left.weight"]}}).speedup_model()
    assert residual.left.out_channels == 4
    assert gap(masked, residual, image) < 1e-5


# what goes wrong


@pytest.fixture(params=["bare", "masked"])
def either(request: pytest.FixtureRequest, residual: Residual) -> Residual:
    """A model without masks, and one with masks on."""
    if request.param == "masked":
        L1NormPruner(residual, CONVS).compress()
    return residual


def assert_untouched(model: nn.Module, before: nn.Module, identities: list[int]) -> None:
    assert [id(p) for p in model.parameters()] == identities
    old, new = before.state_dict(), model.state_dict()
    assert list(old) == list(new)
    assert all(torch.equal(old[name], new[name]) for name in old)
    on = masks_on(before)
    assert list(masks_on(model)) == list(on)
    assert all(torch.equal(on[name], mask) for name, mask in masks_on(model).items())


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"lft": {"weight": channels(0)}}, r"'lft.weight'.*Did you mean 'left.weight'"),
        ({"left": {"wieght": channels(0)}}, r"'left.wieght'.*Did you mean 'left.weight'"),
        ({"left": {"weight": torch.ones(8, 3)}}, r"'left.weight' is \(8, 3\)"),
        ({"left": {"weight": channels(0) / 2}}, r"'left.weight' has values other than 0 and 1"),
        ({"left": {"weight": [1, 0]}}, r"'left.weight' is a list, not a tensor"),
    ],
)
def test_speedup_model_when_a_mask_fits_nothing_then_says_so_and_the_model_is_untouched(
    either, image, masks, message
):
    before, identities = copy.deepcopy(either), [id(p) for p in either.parameters()]
    with pytest.raises(MaskError, match=message):
        ModelSpeedup(either, image, {"right": {"weight": channels(1)}, **masks}).speedup_model()
    assert_untouched(either, before, identities)


def test_speedup_model_when_the_forward_fails_then_the_model_is_untouched(either):
    before, identities = copy.deepcopy(either), [id(p) for p in either.parameters()]
    with pytest.raises(TraceError):
        ModelSpeedup(either, torch.zeros(2, 5, 8, 8), {}).speedup_model()
    assert_untouched(either, before, identities)


@pytest.mark.parametrize("error", [ShrinkError, VerificationError, KeyboardInterrupt])
def test_speedup_model_when_the_cut_fails_then_the_model_is_untouched(
    either, image, error, monkeypatch
):
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error("no")

    monkeypatch.setattr(sys.modules["secateur.shrinking.verify"], "difference", fail)
    before, identities = copy.deepcopy(either), [id(p) for p in either.parameters()]
    masks = {"left": {"weight": channels(0)}, "right": {"weight": channels(0)}}
    with pytest.raises(error):
        ModelSpeedup(either, image, masks).speedup_model()
    assert_untouched(either, before, identities)


# NNI's signature


def test_init_when_given_all_of_nnis_arguments_then_they_are_accepted(residual, image):
    masks = {"left": {"weight": channels(0)}, "right": {"weight": channels(0)}}
    speedup = ModelSpeedup(residual, image, masks, None, 0, 8, None, None, None, True, None)
    assert speedup.speedup_model().left.out_channels == 7


@pytest.mark.parametrize("name", ["customized_mask_updaters", "customized_replacers"])
def test_init_when_given_replacers_then_warns_that_they_are_not_needed(residual, image, name):
    with pytest.warns(UserWarning, match="are ignored"):
        ModelSpeedup(residual, image, {}, **{name: [object()]})


@pytest.mark.parametrize(
    "wrap", [lambda x: (x,), lambda x: [x], lambda x: {"x": x}], ids=["tuple", "list", "dict"]
)
def test_speedup_model_when_the_dummy_input_is_a_tuple_list_or_dict_then_it_is_unpacked(
    residual, image, wrap
):
    masks = {"left": {"weight": channels(0)}, "right": {"weight": channels(0)}}
    assert ModelSpeedup(residual, wrap(image), masks).speedup_model().left.out_channels == 7


SCRIPT = """
import torch
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup

config_list = [{
    'op_types': ['Linear', 'Conv2d'],
    'exclude_op_names': ['fc3'],
    'sparse_ratio': 0.5
}]
pruner = L1NormPruner(model, config_list)
print(model)

_, masks = pruner.compress()
for name, mask in masks.items():
    print(name, ' sparsity : ', '{:.2}'.format(mask['weight'].sum() / mask['weight'].numel()))

pruner.unwrap_model()
ModelSpeedup(model, torch.rand(3, 1, 28, 28), masks).speedup_model()
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
loss = model(torch.rand(3, 1, 28, 28)).sum()
loss.backward()
optimizer.step()
"""


class Digits(nn.Module):
    """The small network of NNI's quick start."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, 1)
        self.conv2 = nn.Conv2d(6, 16, 5, 1)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def test_nnis_quick_start_when_only_its_imports_change_then_runs_and_halves_every_layer(capsys):
    model = Digits()
    exec(SCRIPT.replace("nni.compression", "secateur.nni"), {"model": model})
    assert capsys.readouterr().out.count("sparsity :  0.5") == 4
    assert [p.shape[0] for n, p in model.named_parameters() if n.endswith("weight")] == [
        3,
        8,
        60,
        42,
        10,
    ]
    assert model.fc1.in_features == 8 * 4 * 4


def test_speedup_model_when_outputs_are_still_masked_then_the_model_runs_as_before(residual, image):
    config = [
        {"op_names": ["head"], "target_names": ["_output_"], "sparse_ratio": 0.5},
        {"op_names": ["left", "right"], "sparse_ratio": 0.5, "dependency_group_id": 0},
    ]
    evaluator = type("Evaluator", (), {"dummy_input": image})()
    pruner = L1NormPruner(residual, config, evaluator)
    _, masks = pruner.compress()
    masked = copy.deepcopy(residual)
    ModelSpeedup(residual, image, masks).speedup_model()
    assert residual.left.out_channels == 4
    assert gap(masked, residual, image) < 1e-5


@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (8, 3, 1, 1), (8, 3, 3, 3)])
def test_speedup_model_when_masks_broadcast_then_they_are_those_of_the_weights(
    residual, image, shape
):
    mask = channels(0, 5)[tuple(slice(n) for n in shape)]
    ModelSpeedup(residual, image, {"left": {"weight": mask}, "right": {"weight": mask}}).run()
    assert (residual.left.out_channels, residual.head.in_channels) == (6, 6)


def test_run_then_it_is_speedup_model(residual, image):
    masks = {"left": {"weight": channels(2)}, "right": {"weight": channels(2)}}
    assert ModelSpeedup(residual, image, masks).run() is residual
    assert residual.left.out_channels == 7


@pytest.mark.parametrize("unwrapped", [True, False])
def test_speedup_model_when_masks_of_values_are_on_then_it_says_that_they_keep_channels(
    image, unwrapped
):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    align = {"module_name": "0", "target_name": "weight", "dims": [0]}
    config = [
        {"op_names": ["0"], "sparse_ratio": 0.5},
        {
            "op_names": ["1"],
            "target_names": ["_output_"],
            "target_settings": {"_output_": {"align": align}},
        },
    ]
    pruner = L1NormPruner(model, config)
    _, masks = pruner.compress()
    masked = copy.deepcopy(model)
    if unwrapped:
        pruner.unwrap_model()
    speedup = ModelSpeedup(model, image, masks)
    speedup.run()
    told = [w for w in speedup.result.warnings if "1._output_0" in w and "unwrap_model()" in w]
    assert len(told) == (0 if unwrapped else 1)
    assert model[0].out_channels == (4 if unwrapped else 8)
    assert gap(masked, model, image) < 1e-5


def test_speedup_when_called_as_in_nni_2_then_it_takes_these_arguments() -> None:
    from secateur.nni.pytorch.speedup import ModelSpeedup as Older

    x, mask = torch.zeros(1, 3, 8, 8), torch.ones(8, 3, 3, 3)
    mask[:3] = 0
    masks = {"0": {"weight": mask, "bias": mask[:, 0, 0, 0]}}
    for given in ({"masks_file": masks}, {"masks_file": masks, "confidence": 4, "fold_bias": True}):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
        Older(net, dummy_input=x, **given).speedup_model()
        assert net[0].out_channels == 5
    with pytest.warns(UserWarning, match="ignored"):
        Older(net, x, masks, customized_replace_func={"Swish": print})


@pytest.mark.parametrize(
    ("masks", "said"),
    [(None, "not a NoneType"), ({"0.weight": torch.ones(2)}, r"\{'0': \{'weight': …\}\}")],
)
def test_speedup_when_masks_are_in_another_form_then_mask_error_says_which(masks, said) -> None:
    with pytest.raises(MaskError, match=said):
        ModelSpeedup(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), masks)
