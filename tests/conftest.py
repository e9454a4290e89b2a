"""Fixtures and settings for all tests."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import BaseContext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, settings

import secateur
from tests import zoo

# Small tensors gain nothing from threads, and on a busy machine these wait for each other: the
# same file took 157 s with two threads and 15 s with one.  Parallel is `pytest -n`, as `make test`.
torch.set_num_threads(1)

# How long an example takes is the machine's business, and no test's.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> ModuleType:
    """Return the loader of the shared data; skip the test where there is none."""
    if not (zoo.shared_data_folder() / "load.py").is_file():
        pytest.skip(
            f"no shared data at {zoo.shared_data_folder()} (set SECATEUR_SHARED to its parent)"
        )
    return zoo.shared_data()


@pytest.fixture(scope="session")
def processes() -> BaseContext:
    """Return where to start processes from: a server that has imported torch once for all."""
    places = [str(Path(secateur.__file__).parents[1]), str(Path(__file__).parents[1])]
    others = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([*places, others])  # the server takes it from here
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runs", "tests.ranks"])
    return context
