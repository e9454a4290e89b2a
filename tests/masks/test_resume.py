"""A run that is saved and goes on elsewhere ends as the run that was not interrupted."""

from __future__ import annotations

import random
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.errors import ConfigError, FileError
from secateur.masks.resume import read_state, write_state
from tests import runs


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", runs.SETTINGS)
@pytest.mark.parametrize("at", [5, 13, 22])
def test_load_when_a_run_was_interrupted_then_it_ends_bit_for_bit_alike(
    kind, at, tmp_path, monkeypatch
):
    unbroken = runs.train(kind, str(tmp_path / "unbroken"))
    step, calls = Pruner.step, []

    def stopping(self):
        calls.append(self)
        if len(calls) == at:
            raise Stopped
        return step(self)

    monkeypatch.setattr(Pruner, "step", stopping)
    with pytest.raises(Stopped):
        runs.train(kind, str(tmp_path / "broken"))
    assert_equal(runs.train(kind, str(tmp_path / "broken")), unbroken)
    assert any(not value.all() for name, value in unbroken.items() if name.startswith("mask of"))


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=pytest.mark.slow)], ids=lambda n: f"{n} kills"
)
@pytest.mark.parametrize("kind", ["taylor", "movement"])
def test_load_when_the_process_was_killed_at_any_moment_then_it_ends_bit_for_bit_alike(
    kind, kills, tmp_path, processes
):
    unbroken = runs.train(kind, str(tmp_path / "unbroken"))
    chance = random.Random(kills)

    def start() -> BaseProcess:
        process = processes.Process(
            target=runs.train_and_write, args=(kind, str(tmp_path / "killed")), daemon=True
        )
        process.start()
        return process

    (tmp_path / "killed").mkdir()
    started = time.monotonic()
    start().join(120)
    whole = time.monotonic() - started
    (tmp_path / "killed" / "end.pt").unlink()
    runs.shutil.rmtree(tmp_path / "killed" / "last")
    for _ in range(kills):
        process = start()
        process.join(chance.uniform(0.2, 1.0) * whole)
        process.kill()
        process.join()
    for _ in range(2):  # the second finds nothing to do, or the kill fell between two renames
        process = start()
        process.join(120)
        assert process.exitcode == 0
    end = torch.load(tmp_path / "killed" / "end.pt", weights_only=True)
    assert_equal(end, unbroken)


def net() -> nn.Module:
    return runs.net().eval()


def test_load_when_the_settings_differ_then_config_error_names_them(tmp_path):
    pruner = Pruner(net(), Config(sparsity=0.5, steps=3), torch.zeros(2, 6))
    pruner.step()
    pruner.save(tmp_path / "state")
    other = Pruner(net(), Config(sparsity=0.5, steps=4), torch.zeros(2, 6))
    with pytest.raises(ConfigError, match="steps: 3 there, 4 here"):
        other.load(tmp_path / "state")
    assert other.masks == {}


def test_load_when_the_model_differs_then_config_error_and_no_mask_is_on(tmp_path):
    pruner = Pruner(net(), Config(sparsity=0.5), torch.zeros(2, 6))
    pruner.step()
    pruner.save(tmp_path / "state")
    shallow = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    other = Pruner(shallow, Config(sparsity=0.5), torch.zeros(2, 6))
    with pytest.raises(ConfigError, match="another model"):
        other.load(tmp_path / "state")
    assert list(shallow.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_load_when_the_file_is_truncated_then_file_error(tmp_path):
    pruner = Pruner(net(), Config(sparsity=0.5), torch.zeros(2, 6))
    pruner.step()
    pruner.save(tmp_path / "state")
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-9])
    with pytest.raises(FileError):
        pruner.load(tmp_path / "state")


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 9}', '{"schema": 1, "state": {"list": 3}}'])
def test_read_state_when_the_header_is_another_then_file_error(text, tmp_path):
    from secateur.runtime.io import write_tensors

    write_tensors(tmp_path / "state", {"x": torch.ones(1)}, text=text)
    with pytest.raises(FileError):
        read_state(tmp_path / "state")


def test_write_state_when_it_fails_then_the_old_file_is_there_still(tmp_path):
    write_state(tmp_path / "state", {"calls": 1})
    with pytest.raises(TypeError, match="a set cannot be saved"):
        write_state(tmp_path / "state", {"calls": {1, 2}})
    assert read_state(tmp_path / "state") == {"calls": 1}
    assert [path.name for path in Path(tmp_path).iterdir()] == ["state"]
