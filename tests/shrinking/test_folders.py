"""A folder is whole, as it was or as it will be: kills, readers, writers, flips, planted links."""

from __future__ import annotations

import copy
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sc
from secateur.cli.models import RECORD, Source, recalled, record_of
from secateur.errors import FileError, WriteError
from secateur.runtime.io import write_text
from secateur.shrinking import files
from secateur.shrinking.files import add_beside, save_with
from tests.faults import file_calls, flipped, kills, resign, truncated


class Net(nn.Module):
    """A buffer that no state dict holds, so that a save has three files."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 16)
        self.two = nn.Linear(16, 3)
        self.register_buffer("scale", torch.linspace(1, 2, 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu() * self.scale)


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def pruned(sparsity: float, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return sc.prune(Net(), X, sparsity=sparsity).model.requires_grad_(False)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Return two models of other shapes, and one of the shapes of the first with other numbers."""
    retrained = copy.deepcopy(pruned(0.5, 1))
    for parameter in retrained.parameters():
        parameter.mul_(1.5)
    return {"old": pruned(0.5, 1), "new": pruned(0.25, 2), "retrained": retrained}


def loaded(folder: Path) -> Tensor:
    return sc.load_pruned(folder, Net().requires_grad_(False))(X)


def which(folder: Path, models: dict[str, nn.Module]) -> str:
    found = loaded(folder)
    names = [name for name, model in models.items() if torch.equal(model(X), found)]
    assert names, "a mix of two saves was loaded"
    return names[0]


def without_digests(folder: Path) -> None:
    """Let a folder be as secateur wrote it before there were digests."""
    document = json.loads((folder / "plan.json").read_text())
    del document["files"], document["sha256"]
    (folder / "plan.json").write_text(json.dumps({**document, "schema": 2}))


def save_recorded(model: nn.Module, folder: Path, name: str) -> None:
    """Save as the command line does: the record goes with the model."""
    text = record_of(Source(f"torchvision:{name}", {}))
    save_with(model, folder, beside=lambda made: write_text(made / RECORD, text))


@pytest.mark.parametrize(
    ("kind", "new", "step"),
    [
        ("digests", "retrained", 7),
        *(
            pytest.param(kind, new, 1, marks=pytest.mark.slow)
            for kind in ("digests", "before digests", "shards")
            for new in ("new", "retrained")
        ),
    ],
)
def test_save_when_killed_at_any_file_call_then_the_folder_is_whole(
    models, tmp_path, kind, new, step
):
    folder, start = tmp_path / "small", tmp_path / "start"
    save_recorded(models["old"], start, "old")
    if kind == "shards":
        state = load_file(start / "model.safetensors")
        (start / "model.safetensors").unlink()
        for i, name in enumerate(state):
            save_file({name: state[name]}, start / f"model-{i}-of-{len(state)}.safetensors")
        sc.save_pruned(models["old"], start, weights=False)
    if kind == "before digests":
        without_digests(start)
    found = []
    shutil.copytree(start, folder)
    for _ in kills(lambda: save_recorded(models[new], folder, new), folder, step=step):
        found.append(which(folder, models))
        # what the folder says of its dense model goes with the weights
        if kind == "digests":
            assert recalled(folder).model == f"torchvision:{found[-1]}"
        save_recorded(models[new], folder, new)  # what was killed is in nobody's way
        assert which(folder, models) == new
        names = {"model.safetensors", "buffers.safetensors", "plan.json", RECORD}
        assert set(os.listdir(folder)) == names
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
    assert set(found) == {"old", new}
    assert found == sorted(found, key=[*models].index), "it was new, and old again"


def test_add_beside_when_killed_at_any_file_call_then_the_folder_is_whole(models, tmp_path):
    folder = tmp_path / "small"
    for at in range(0, 200, 5):
        shutil.rmtree(folder, ignore_errors=True)
        save_recorded(models["old"], folder, "old")
        new = record_of(Source("torchvision:new", {}))
        status = file_calls(lambda text=new: add_beside(folder, RECORD, text), folder, at)
        assert which(folder, models) == "old"
        name = recalled(folder, trust=False).model
        assert name in ("torchvision:old", "torchvision:new")
        if status == 0:
            assert name == "torchvision:new"
            return
    raise AssertionError("it was never done")


def test_load_when_somebody_writes_meanwhile_then_no_mix_is_loaded(models, tmp_path):
    folder = tmp_path / "small"
    sc.save_pruned(models["old"], folder)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for name in ("new", "retrained", "old"):
                sc.save_pruned(models[name], folder)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        found = [which(folder, models) for _ in range(60)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert len(set(found)) > 1
    which(folder, models)
    assert sorted(os.listdir(folder)) == ["buffers.safetensors", "model.safetensors", "plan.json"]


def test_save_when_many_threads_save_then_one_of_them_is_whole(models, tmp_path):
    failed: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for _ in range(5):
                sc.save_pruned(models[name], tmp_path)
        except BaseException as error:  # a thread would only print it
            failed.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in [*models] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    which(tmp_path, models)


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors"])
@pytest.mark.parametrize("damage", [flipped, truncated])
def test_load_when_a_file_is_damaged_then_file_error(models, tmp_path, file, damage):
    sc.save_pruned(models["old"], tmp_path)
    data = (tmp_path / file).read_bytes()
    chance = Random(f"{file} {damage.__name__}")
    for _ in range(40):
        (tmp_path / file).write_bytes(damage(data, chance))
        with pytest.raises(FileError, match=file):
            loaded(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors", "plan.json"])
def test_load_when_a_file_is_of_another_save_then_file_error(models, tmp_path, file):
    sc.save_pruned(models["old"], tmp_path / "a")
    sc.save_pruned(models["retrained"], tmp_path / "b")
    if file == "buffers.safetensors":  # the same in both
        save_file({"scale": torch.ones(8)}, tmp_path / "b" / file)
    shutil.copy(tmp_path / "b" / file, tmp_path / "a" / file)
    with pytest.raises(FileError, match="its SHA-256 is another|bytes, and had"):
        loaded(tmp_path / "a")


def test_load_when_digests_are_not_verified_then_only_sizes_are(models, tmp_path):
    sc.save_pruned(models["old"], tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    sc.load_pruned(tmp_path, Net(), verify_digests=False)
    (tmp_path / "model.safetensors").write_bytes(data + b" ")
    with pytest.raises(FileError, match="bytes, and had"):
        sc.load_pruned(tmp_path, Net(), verify_digests=False)


def test_load_when_it_was_saved_before_there_were_digests_then_it_loads(models, tmp_path):
    sc.save_pruned(models["old"], tmp_path)
    without_digests(tmp_path)
    assert which(tmp_path, models) == "old"


def test_save_when_a_plan_keeps_more_than_is_read_then_that_is_said_first(
    models, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "MOST_IN_ALL", 7)  # 8 of 16 are kept
    with pytest.raises(FileError, match="8 positions are kept"):
        sc.save_pruned(models["old"], tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("index", [True, False])
def test_load_when_shards_of_an_older_save_are_left_then_they_are_not_read(models, tmp_path, index):
    sc.save_pruned(models["old"], tmp_path)
    stale = {"one.weight": torch.zeros(16, 6), "other": torch.zeros(1)}
    save_file(stale, tmp_path / "model-00001-of-00002.safetensors")
    if index:
        names = dict.fromkeys(stale, "model-00001-of-00002.safetensors")
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert which(tmp_path, models) == "old"
    without_digests(tmp_path)
    assert which(tmp_path, models) == "old"
    sc.save_pruned(models["new"], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["buffers.safetensors", "model.safetensors", "plan.json"]


def test_save_when_weights_come_later_then_the_plan_does_not_speak_of_those_before(
    models, tmp_path
):
    sc.save_pruned(models["old"], tmp_path)
    sc.save_pruned(models["retrained"], tmp_path, weights=False)
    assert "model.safetensors" not in json.loads((tmp_path / "plan.json").read_text())["files"]
    save_file(models["retrained"].state_dict(), tmp_path / "model.safetensors")
    assert which(tmp_path, models) == "retrained"
    sc.save_pruned(models["retrained"], tmp_path, weights=False)
    assert "model.safetensors" in json.loads((tmp_path / "plan.json").read_text())["files"]


@pytest.mark.parametrize("name", ["../plan.json", "/etc/passwd", ".hidden", "a/b", "", "a" * 300])
def test_load_when_the_plan_names_files_elsewhere_then_file_error(models, tmp_path, name):
    sc.save_pruned(models["old"], tmp_path)
    resign(tmp_path, lambda d: d["files"].update({name: {"size": 1, "sha256": "0" * 64}}))
    with pytest.raises(FileError, match="is damaged, or no plan"):
        loaded(tmp_path)


def guessed(folder: Path) -> list[Path]:
    """Return names that a temporary file might have, if somebody could guess it."""
    ends = (str(os.getpid()), "tmp", f"{os.getpid()}.tmp", "part", "new")
    names = ("model.safetensors", "plan.json", "buffers.safetensors", "")
    return [folder / f"{dot}{name}.{end}" for name in names for end in ends for dot in (".", "")]


def test_save_when_links_are_planted_then_none_is_followed(models, tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "small").mkdir()
    names = ["model.safetensors", "buffers.safetensors", "plan.json"]
    for path in (*guessed(tmp_path / "small"), *(tmp_path / "small" / name for name in names)):
        path.symlink_to(tmp_path / "precious")
    sc.save_pruned(models["old"], tmp_path / "small")
    assert which(tmp_path / "small", models) == "old"
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "os.mkdir"])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
def test_save_when_the_system_refuses_then_write_error_and_a_whole_folder(
    models, tmp_path, monkeypatch, call, after
):
    sc.save_pruned(models["old"], tmp_path)
    name = call.partition(".")[2]
    true, calls = getattr(os, name), []

    def full(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        return true(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        try:
            sc.save_pruned(models["new"], tmp_path)
            refused = False
        except WriteError:
            refused = True
    assert refused == (len(calls) > after)
    which(tmp_path, models)
    sc.save_pruned(models["new"], tmp_path)
    assert which(tmp_path, models) == "new"
    assert sorted(os.listdir(tmp_path)) == ["buffers.safetensors", "model.safetensors", "plan.json"]


PLACES: dict[str, Callable[[Path], Path]] = {
    "a file": lambda path: path / "file",
    "below a file": lambda path: path / "file" / "deep",
    "too long": lambda path: path / ("x" * 300),
    "a loop": lambda path: path / "loop",
    "a null byte": lambda path: path / "a\0b",
}


@pytest.mark.parametrize("place", PLACES)
def test_files_when_the_place_is_none_then_file_error(models, tmp_path, place):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    where = PLACES[place](tmp_path)
    with pytest.raises(WriteError):
        sc.save_pruned(models["old"], where)
    with pytest.raises(FileError):
        sc.load_pruned(where, Net())
    with pytest.raises(FileError):
        sc.load_plans(where)


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors", "plan.json"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "loop"])
@pytest.mark.parametrize("old", [False, True])
def test_load_when_a_file_is_none_then_it_neither_hangs_nor_fills_the_memory(
    models, tmp_path, file, kind, old
):
    sc.save_pruned(models["old"], tmp_path)
    if old:
        without_digests(tmp_path)
    path = tmp_path / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "zero" else path)
    with pytest.raises(FileError):
        loaded(tmp_path)
