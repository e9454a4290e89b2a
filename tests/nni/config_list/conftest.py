"""Fixtures of the tests of config_list."""

from __future__ import annotations

import pytest

from secateur.nni import targets as nni_targets
from tests.nni.config_list.entries import Net


@pytest.fixture
def model() -> Net:
    return Net()


@pytest.fixture
def forget_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_targets, "_known", dict(nni_targets._known))
