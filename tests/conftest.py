"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
from types import ModuleType

import pytest
import torch

from tests import zoo

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores between them
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> ModuleType:
    """Return the loader of the shared data; skip the test where there is none."""
    if not (zoo.shared_data_folder() / "load.py").is_file():
        pytest.skip(
            f"no shared data at {zoo.shared_data_folder()} (set SECATEUR_SHARED to its parent)"
        )
    return zoo.shared_data()
