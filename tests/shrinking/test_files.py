"""A smaller model comes back from its files; what does not fit changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sc
from secateur.errors import FileError, PlanError
from secateur.shrinking.cut import Surgery
from tests.faults import resign


class Tied(nn.Module):
    """A body between two tied tables."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.up = nn.Linear(width, 16)
        self.down = nn.Linear(16, width)
        self.head = nn.Linear(width, 12, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(torch.relu(x + self.down(torch.relu(self.up(x)))))


class Sizes(nn.Module):
    """Sizes in Python, alone and in a tuple, and a buffer that no state dict holds."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.parts = (8, 8)
        self.first = nn.Linear(6, 16)
        self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)
        self.register_buffer("shift", torch.linspace(1, 2, 3), persistent=False)
        self.second = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).split(self.parts, -1)
        x = self.second(left * right * self.scale)
        x = x.view(x.shape[0], self.heads, -1).transpose(1, 2).flatten(1)
        return self.out(x[:, :8]) * self.shift


class Normed(nn.Sequential):
    """Running statistics, an integer buffer, and layers that describe themselves."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
        )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "tied": (Tied, torch.arange(12).reshape(2, 6)),
    "sizes": (Sizes, torch.randn(2, 6, generator=torch.Generator().manual_seed(1))),
    "normed": (Normed, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))),
}


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(example)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything that loading may change, tensors by identity and by value."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    held = {path: {**vars(module)} for path, module in model.named_modules()}
    plain = {p: {k: repr(v) for k, v in h.items() if k[0] != "_"} for p, h in held.items()}
    return {
        "values": {name: (id(t), t.detach().clone()) for name, t in tensors.items()},
        "plain": plain,
        "names": {path: sorted(h) for path, h in held.items()},
        "classes": {path: type(module) for path, module in model.named_modules()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for part in ("plain", "names", "classes"):
        assert before[part] == after[part]
    assert before["values"].keys() == after["values"].keys()
    for name, (identity, value) in before["values"].items():
        assert identity == after["values"][name][0], name
        assert torch.equal(value, after["values"][name][1]), name


@pytest.fixture(scope="module")
def results() -> dict[str, sc.Result]:
    torch.manual_seed(0)
    return {
        name: sc.prune(make(), example, sparsity=0.5) for name, (make, example) in MODELS.items()
    }


@pytest.fixture
def saved(results, tmp_path: Path) -> Path:
    return results["tied"].save(tmp_path / "small")


def refuses(folder: Path, model: nn.Module, match: str) -> str:
    before = state_of(model)
    with pytest.raises(FileError, match=match) as caught:
        sc.load_pruned(folder, model)
    assert_same(before, state_of(model))
    return str(caught.value)


# there and back


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_when_the_model_is_fresh_then_it_computes_the_same(results, tmp_path, name, device):
    make, example = MODELS[name]
    folder = results[name].save(tmp_path / "deep" / "small")
    with torch.device(device):
        fresh = make()
    loaded = sc.load_pruned(folder, fresh)
    assert loaded is fresh
    assert torch.equal(outputs(loaded, example), outputs(results[name].model, example))
    assert repr(loaded) == repr(results[name].model)
    assert not any(t.is_meta for t in loaded.state_dict().values())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_load_when_weights_are_tied_then_they_stay_tied(saved, device):
    with torch.device(device):
        fresh = Tied()
    model = sc.load_pruned(saved, fresh)
    assert model.head.weight is model.embed.weight
    assert "head.weight" not in load_file(saved / "model.safetensors")


def test_load_when_the_model_has_weights_then_parameters_stay_the_same_objects(saved):
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sc.load_pruned(saved, model)
    before = model.up.weight.detach().clone()
    model(MODELS["tied"][1]).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.up.weight)


def test_save_when_trained_further_then_the_new_weights_are_written(results, tmp_path):
    make, example = MODELS["normed"]
    model = copy.deepcopy(results["normed"].model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(example).square().sum().backward()
    optimizer.step()
    loaded = sc.load_pruned(sc.save_pruned(model, tmp_path), make())
    assert torch.equal(outputs(loaded, example), outputs(model, example))
    assert not torch.equal(outputs(loaded, example), outputs(results["normed"].model, example))


@pytest.mark.parametrize("name", MODELS)
def test_save_when_pruned_twice_then_one_load_makes_both_steps(results, tmp_path, name):
    make, example = MODELS[name]
    twice = sc.prune(results[name].model, example, sparsity=0.5)
    sc.save_pruned(twice, tmp_path)
    assert sc.load_plans(tmp_path) == (results[name].plan, twice.plan)
    loaded = sc.load_pruned(tmp_path, make())
    assert torch.equal(outputs(loaded, example), outputs(twice.model, example))
    assert sum(p.numel() for p in loaded.parameters()) == twice.after.params


def test_save_when_loaded_and_saved_again_then_the_files_are_equal(results, tmp_path):
    one = sc.save_pruned(results["sizes"], tmp_path / "one")
    two = sc.save_pruned(sc.load_pruned(one, Sizes()), tmp_path / "two")
    for file in ("model.safetensors", "buffers.safetensors", "plan.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_save_when_written_then_the_plan_can_be_read_by_a_person(saved):
    document = json.loads((saved / "plan.json").read_text())
    assert document["model"].endswith(".Tied")
    assert document["tied"] == {"head.weight": "embed.weight"}
    assert document["shapes"]["up.bias"] == {"before": [16], "after": [8]}
    lines = (saved / "plan.json").read_text().splitlines()
    assert any(line.strip().startswith('"up.bias": {"before": [16]') for line in lines)
    names = ["model.safetensors", "plan.json", "record.json"]
    assert sorted(p.name for p in saved.iterdir()) == names


def test_save_when_another_model_was_there_then_nothing_of_it_stays(results, saved):
    results["sizes"].save(saved)
    assert (saved / "buffers.safetensors").is_file()
    results["tied"].save(saved)
    assert not (saved / "buffers.safetensors").exists()
    sc.load_pruned(saved, Tied())


def test_save_when_weights_are_somebody_elses_then_they_are_read_from_their_files(
    results, tmp_path
):
    model = results["sizes"].model
    state = model.state_dict()
    names = sorted(state)
    for i, part in enumerate((names[:2], names[2:])):  # as sharded checkpoints are written
        save_file({n: state[n] for n in part}, tmp_path / f"model-0000{i + 1}-of-2.safetensors")
    sc.save_pruned(model, tmp_path, weights=False)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = sc.load_pruned(tmp_path, Sizes())
    assert torch.equal(outputs(loaded, MODELS["sizes"][1]), outputs(model, MODELS["sizes"][1]))
    (tmp_path / "model-00001-of-2.safetensors").unlink()
    refuses(tmp_path, Sizes(), f"{names[0]!r} is missing in the files")


# plans


@pytest.mark.parametrize("name", MODELS)
def test_apply_plan_when_the_dense_weights_are_others_then_they_are_cut_alike(
    results, tmp_path, name
):
    make, example = MODELS[name]
    results[name].save(tmp_path)
    dense = make()
    before = state_of(dense)
    result = sc.apply_plan(dense, tmp_path, example)
    assert_same(before, state_of(dense))
    assert result.verification is not None
    assert result.verification.passed
    shapes = {n: t.shape for n, t in results[name].model.state_dict().items()}
    assert {n: t.shape for n, t in result.model.state_dict().items()} == shapes


def test_apply_plan_when_there_are_two_steps_then_both_are_made(results, tmp_path):
    twice = sc.prune(results["tied"].model, MODELS["tied"][1], sparsity=0.5)
    twice.save(tmp_path)
    assert sc.apply_plan(Tied(), tmp_path, MODELS["tied"][1]).after.params == twice.after.params


def test_apply_plan_when_it_does_not_fit_then_plan_error():
    with pytest.raises(PlanError, match="'upp'.*Did you mean 'up'"):
        sc.apply_plan(Tied(), sc.Plan({"upp": (0,)}), MODELS["tied"][1])
    with pytest.raises(PlanError, match="no plan to apply"):
        sc.apply_plan(Tied(), [], MODELS["tied"][1])


# what is not saved


def test_save_when_the_model_is_dense_then_file_error(tmp_path):
    with pytest.raises(FileError, match="Tied was not pruned by secateur"):
        sc.save_pruned(Tied(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_save_when_a_layer_was_replaced_since_then_file_error(results, tmp_path):
    model = copy.deepcopy(results["tied"].model)
    model.up = nn.Linear(4, 5)
    with pytest.raises(FileError, match=r"'up.weight' was \(8, 4\) after pruning, and is \(5, 4\)"):
        sc.save_pruned(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_save_when_the_disk_is_full_then_the_old_files_load(results, saved, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        results["tied"].save(saved)
    names = ["model.safetensors", "plan.json", "record.json"]
    assert sorted(p.name for p in saved.iterdir()) == names
    sc.load_pruned(saved, Tied())


# what does not fit


class Other(Tied):
    pass


def half() -> nn.Module:
    return Tied().half()


def untied() -> nn.Module:
    model = Tied()
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return model


def renamed() -> nn.Module:
    model = Tied()
    model.upper = model.up
    del model.up
    return model


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (Other, "saved from a .*Tied, and this is a Other"),
        (lambda: Tied(6), r"'up.weight' is \(16, 6\) in this model, and was \(16, 8\)"),
        (half, "'up.weight' is torch.float32 in the file, and torch.float16 in this model"),
        (untied, "'head.weight' and 'embed.weight' are one tensor in the file, and two"),
        (renamed, "this model has no tensor 'up.bias'. Did you mean 'upper.bias'"),
        (lambda: nn.Linear(2, 2), "this is a Linear"),
    ],
    ids=["class", "width", "dtype", "untied", "renamed", "foreign"],
)
def test_load_when_the_model_is_another_then_it_says_how_and_changes_nothing(saved, make, match):
    refuses(saved, make(), match)


def test_load_when_the_model_is_pruned_already_then_file_error(saved):
    refuses(saved, sc.load_pruned(saved, Tied()), "is pruned already")


def test_load_when_an_attribute_is_another_then_file_error(results, tmp_path):
    results["sizes"].save(tmp_path)
    model = Sizes()
    model.parts = (8, 9)
    refuses(tmp_path, model, r"parts\[1\] is 9 in this model, and was 8 in the dense one")


def test_load_when_much_is_wrong_then_the_list_is_cut_short(results, tmp_path):
    folder = results["tied"].save(tmp_path)
    save_file({f"x{i}": torch.zeros(1) for i in range(40)}, folder / "model.safetensors")
    text = refuses(folder, Tied(), "has no tensor 'x0'")
    assert "more" in text.splitlines()[-1]
    assert len(text.splitlines()) < 16


# what is damaged or hostile


@pytest.mark.parametrize("file", ["plan.json", "model.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_load_when_a_file_is_truncated_then_file_error(saved, file, share):
    data = (saved / file).read_bytes()
    (saved / file).write_bytes(data[: int(len(data) * share) - (share == 0.999)])
    refuses(saved, Tied(), file)


@pytest.mark.parametrize("file", ["plan.json", "model.safetensors"])
def test_load_when_a_file_is_missing_then_file_error(saved, file):
    (saved / file).unlink()
    refuses(saved, Tied(), file)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "NaN", '"plan"', "[" * 100_000, '{"a":' * 100_000, "\x00", "1e999"],
    ids=["empty", "null", "list", "object", "nan", "text", "deep list", "deep", "zero", "inf"],
)
def test_load_when_the_plan_is_no_plan_then_file_error(saved, text):
    (saved / "plan.json").write_text(text)
    refuses(saved, Tied(), "is damaged, or no plan of secateur")


HUGE = [[i, i + (1 << 20) - 1] for i in (0,)]


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (("format",), "other", "format: must be 'secateur.pruned'"),
        (("schema",), 99, "newer than 3: upgrade"),
        (("schema",), "1", "schema: must be a valid integer"),
        (("extra",), 1, "unknown key 'extra'"),
        (("steps",), [{"schema": 1, "keep": {"up": [[0, 1 << 60]]}}], "beyond position"),
        (("steps",), [{"schema": 1, "keep": {"up": [[3, 1]]}}], "is no range of positions"),
        (("steps",), [{"schema": 1, "keep": {"up": [[float("nan"), 1]]}}], "no range of positions"),
        (
            ("steps",),
            [{"schema": 1, "keep": {f"g{i}": HUGE for i in range(100)}}],
            "more than",
        ),
        (("steps",), [[[]]], "steps.0: must be an object"),
        (("shapes", "up.bias", "after"), [-8], r"'up.bias' is \(8,\) in the file, and \(-8,\)"),
        (("shapes", "up.bias", "after"), [1 << 80], "up.bias"),
        (("shapes", "up.bias", "after"), [8.5], "shapes.up.bias.after.0: must be a valid integer"),
        (("shapes", "up.bias", "after"), [1] * 999, "at most 16"),
        (("shapes", "nowhere"), {"before": [1], "after": [1]}, "has no tensor 'nowhere'"),
        (
            ("attributes", "up.in_features"),
            {"before": 9, "after": 1},
            "up.in_features is 8 in this",
        ),
        (("attributes", "up.in_features"), {"before": 8, "after": 0}, "cannot become 0"),
        (("attributes", "up.in_features"), {"before": 8, "after": 1 << 70}, "cannot become"),
        (("attributes", "up.__class__"), {"before": 1, "after": 1}, "is no attribute"),
        (("attributes", "up._version"), {"before": 1, "after": 1}, "is no attribute"),
        (("attributes", "../up.x"), {"before": 1, "after": 1}, "is no attribute"),
        (("attributes", "up.training"), {"before": 1, "after": 1}, "no integer 'up.training'"),
        (("attributes", "up.weight"), {"before": 1, "after": 1}, "no integer 'up.weight'"),
        (("attributes", "up.in_features"), {"before": True, "after": 1}, "must be a valid integer"),
        (("tied", "up.bias"), "down.bias", "are one tensor in the file, and two"),
        (("tied", "up.bias"), 3, "tied.up.bias: must be a valid string"),
        (("model",), "os.system", "saved from a os.system"),
    ],
)
def test_load_when_the_plan_is_hostile_then_file_error(saved, path, value, match):
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    resign(saved, change)
    refuses(saved, Tied(), match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s.pop("up.bias"), "'up.bias' is missing"),
        (lambda s: s.update(evil=torch.zeros(1)), "has no tensor 'evil'"),
        (lambda s: s.update({"up.bias": torch.zeros(9)}), r"'up.bias' is \(9,\) in the file"),
        (lambda s: s.update({"up.bias": torch.zeros(8, dtype=torch.long)}), "torch.int64"),
    ],
    ids=["missing", "unknown", "shape", "dtype"],
)
def test_load_when_the_weights_do_not_fit_then_file_error(saved, change, match):
    state = load_file(saved / "model.safetensors")
    change(state)
    save_file(state, saved / "model.safetensors")
    refuses(saved, Tied(), match)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.sampled_from(["steps", "shapes", "attributes", "tied", "model", "schema"]), value=JSON
)
def test_load_when_anything_is_in_the_plan_then_it_loads_or_raises_file_error(
    results, tmp_path, key, value
):
    folder = results["tied"].save(tmp_path)
    resign(folder, lambda document: document.update({key: value}))
    model = Tied()
    before = state_of(model)
    try:
        sc.load_pruned(folder, model)
    except FileError:
        assert_same(before, state_of(model))


def test_load_when_setting_fails_half_way_then_the_model_is_as_before(saved, monkeypatch):
    model = Tied()
    before = state_of(model)

    def fails(_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Surgery, "describe", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        sc.load_pruned(saved, model)
    assert_same(before, state_of(model))


# what else lies in the folder


def half(seed: int, sparsity: float = 0.5) -> sc.Result:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return sc.prune(net, torch.zeros(1, 4), sparsity=sparsity)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "model.pt2"])
def test_save_when_an_export_of_other_weights_is_there_then_it_is_removed_and_logged(
    tmp_path, caplog, name
):
    half(0).save(tmp_path)
    (tmp_path / name).write_text("made from these")
    half(0).save(tmp_path)  # the same weights
    assert (tmp_path / name).is_file()
    half(1).save(tmp_path)
    assert not (tmp_path / name).exists()
    assert str(tmp_path / name) in caplog.text


def test_save_when_there_were_no_weights_then_an_export_stays(tmp_path):
    (tmp_path / "model.onnx").write_text("made first")
    half(0).save(tmp_path)
    assert (tmp_path / "model.onnx").is_file()


def test_save_when_a_model_in_several_files_was_there_then_only_the_new_one_is(tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).write_text("of another")
    half(0).save(tmp_path)
    fresh = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert sc.load_pruned(tmp_path, fresh)[0].out_features == 4
    names = {"model.safetensors", "plan.json", "record.json"}
    assert {p.name for p in tmp_path.iterdir()} == names


class Registers(nn.Module):
    """Registers a buffer in its first forward: a table, or positions of the hidden width."""

    def __init__(self, persistent: bool, *, named: bool) -> None:
        super().__init__()
        self.up, self.down, self.persistent = nn.Linear(4, 8), nn.Linear(8, 2), persistent
        if named:
            self.table = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).relu()
        if getattr(self, "table", None) is None or self.table.shape[0] != h.shape[-1]:
            if hasattr(self, "table"):
                del self.table
            self.register_buffer("table", torch.ones(h.shape[-1]), persistent=self.persistent)
        return self.down(h * self.table)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("ran", ["before", "after"])
def test_load_when_the_first_forward_registers_a_buffer_then_a_fresh_model_gets_it(
    tmp_path, persistent, named, ran
):
    x = torch.randn(3, 4)
    model = nn.Sequential(Registers(persistent, named=named))
    if ran == "before":
        model(x)
    small = sc.prune(model, x, 0.5).model
    small(x)
    sc.save_pruned(small, tmp_path)
    loaded = sc.load_pruned(tmp_path, nn.Sequential(Registers(persistent, named=named)))
    assert torch.equal(loaded(x), small(x))
    assert loaded.state_dict().keys() == small.state_dict().keys()


def test_load_when_another_tensor_than_a_buffer_is_missing_then_it_is_an_error_still(tmp_path):
    x = torch.randn(3, 4)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    sc.prune(net, x, 0.5).save(tmp_path)
    with pytest.raises(FileError, match=r"no tensor '0\.bias'"):
        sc.load_pruned(
            tmp_path, nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
        )
