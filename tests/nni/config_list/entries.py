"""A model with one layer of each kind, and what most tests here do with it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from secateur.errors import ConfigError
from secateur.nni.config_list import TargetSetting, parse, resolve


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.act = nn.ReLU()
        self.fc1 = nn.Linear(4, 16)
        self.fc2 = nn.Linear(16, 8, bias=False)
        self.emb = nn.Embedding(5, 4)


def resolved(model: nn.Module, *entries: dict[str, Any], **kwargs: Any) -> dict[str, TargetSetting]:
    return {each.name: each for each in resolve(parse(list(entries)), model, **kwargs)}


def parse_problems(*entries: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(list(entries))
    return list(caught.value.problems)


def resolve_problems(model: nn.Module, *entries: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve(parse(list(entries)), model)
    return list(caught.value.problems)


LINEAR = {"op_types": ["Linear"], "sparse_ratio": 0.5}
