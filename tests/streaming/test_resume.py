"""A run that is killed, by SIGKILL, anywhere, goes on at its block and ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

import secateur as sc
from secateur.errors import ConfigError, FileError
from secateur.streaming.run import WORK
from tests.streaming.checkpoints import batches, example, saved

LAYERS = 3
SETTINGS = {"sparsity": 0.5, "what": ["width"], "verify": False}


def in_child(act: Callable[[], object]) -> int:
    """Run something in a process of its own; return how that ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python ≥ 3.12 warns of forks beside threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        act()
        status = 0
    except Exception:
        traceback.print_exc()  # pytest shows it where the status is another than expected
    finally:
        os._exit(status)


def killed_at(act: Callable[[], object], inside: Path, at: int) -> int:
    """Run something in a child that kills itself at its ``at``-th call about files in a folder."""

    def dying() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event.startswith(("open", "os.", "shutil.")) and str(inside) in str(arguments):
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        act()

    return in_child(dying)


def done_in(out: Path) -> int:
    """Return how many blocks a run has finished."""
    path = out / WORK / "journal.json"
    return len(json.loads(path.read_text())["done"]) if path.exists() else 0


def files_in(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    saved("llama", folder, num_hidden_layers=LAYERS)
    return folder


@pytest.fixture(scope="module")
def prune(dense: Path) -> Callable[[Path], Any]:
    def run(out: Path, **more: Any) -> Any:
        settings = {**SETTINGS, **more}
        return sc.prune_checkpoint(dense, out, example(), data=batches(2, 2, 16), **settings)

    return run


@pytest.fixture(scope="module")
def expected(
    prune: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected")
    prune(out)
    return files_in(out)


@pytest.mark.parametrize("at", [60, 330])
def test_prune_checkpoint_when_it_was_killed_then_ends_with_the_same_files(
    at: int, prune: Callable[[Path], Any], expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert killed_at(lambda: prune(tmp_path), tmp_path, at) == -signal.SIGKILL
    before = done_in(tmp_path)
    assert before < LAYERS
    prune(tmp_path)
    assert files_in(tmp_path) == expected
    assert not (tmp_path / WORK).exists()


@pytest.mark.slow
def test_prune_checkpoint_when_it_was_killed_twenty_times_then_ends_with_the_same_files(
    prune: Callable[[Path], Any], expected: dict[str, bytes], tmp_path: Path
) -> None:
    chance, progress = Random(0), [0]
    for _ in range(20):
        at = chance.randrange(1, 260)
        if killed_at(lambda: prune(tmp_path), tmp_path, at) == 0:
            assert files_in(tmp_path) == expected  # it was done before; the next begins anew
            progress.append(0)
        else:
            progress.append(done_in(tmp_path))
    assert len(set(progress)) > 1, "no kill came behind a finished block"
    prune(tmp_path)
    assert files_in(tmp_path) == expected


def test_prune_checkpoint_when_a_file_of_its_own_was_damaged_then_says_so(
    prune: Callable[[Path], Any], tmp_path: Path
) -> None:
    assert killed_at(lambda: prune(tmp_path), tmp_path, 330) == -signal.SIGKILL
    assert done_in(tmp_path) > 0
    path = tmp_path / WORK / "block-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match="damaged"):
        prune(tmp_path)
    with pytest.raises(ConfigError, match="another run, with other settings"):
        prune(tmp_path, sparsity=0.25)
