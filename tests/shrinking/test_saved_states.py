"""A model that says other names in its ``state_dict()`` than its tensors have is saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import FileError


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x).relu())


def _renamed(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith("first.")]:
        state[f"encoder.{name}"] = state.pop(name)


class Renamed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_renamed)


class Partial(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name.startswith("head")}


class More(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {**super().state_dict(*args, **kwargs), "step": torch.tensor(3)}


class Extra(Plain):
    scale = 1.0

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.scale])

    def set_extra_state(self, state: Tensor) -> None:
        self.scale = float(state)


@pytest.mark.parametrize("kind", [Plain, Renamed, Partial, More, Extra])
def test_load_pruned_when_the_state_dict_is_a_models_own_then_the_folder_loads(
    kind: type[Plain], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    model = kind().eval()
    model.seen += 2
    if isinstance(model, Extra):
        model.scale = 0.25
    result = sc.prune(model, x, 0.5)
    result.save(tmp_path / "small")
    loaded = sc.load_pruned(tmp_path / "small", kind()).eval()
    assert torch.equal(loaded(x), result.model(x))
    assert loaded.seen.tolist() == [2.0] * 3
    assert getattr(loaded, "scale", 0.25) == 0.25 or kind is not Extra


def test_save_when_an_extra_state_is_no_tensor_then_it_says_so(tmp_path: Path) -> None:
    class Pickled(Plain):
        def get_extra_state(self) -> Any:
            return {"scale": 1.0}

    result = sc.prune(Pickled().eval(), torch.randn(3, 6), 0.5)
    with pytest.raises(FileError, match="Let get_extra_state"):
        result.save(tmp_path / "small")
    assert not [*tmp_path.rglob("*.*")]


def test_load_pruned_when_it_fails_then_an_extra_state_is_as_before(tmp_path: Path) -> None:
    result = sc.prune(Extra().eval(), torch.randn(3, 6), 0.5)
    result.save(tmp_path / "small")
    model = Extra()
    model.scale, model.first = 0.5, nn.Linear(6, 12)
    with pytest.raises(FileError):
        sc.load_pruned(tmp_path / "small", model)
    assert model.scale == 0.5


def test_load_pruned_when_a_table_was_cast_with_the_model_then_it_is_the_saved_one(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    result = sc.prune(Plain().to(torch.bfloat16).eval(), torch.randn(3, 6).bfloat16(), 0.5)
    result.save(tmp_path / "small")
    fresh = Plain().to(torch.bfloat16)
    fresh.table = fresh.table.float()  # as a class builds it that keeps frequencies exact
    loaded = sc.load_pruned(tmp_path / "small", fresh)
    assert loaded.table.dtype == torch.bfloat16
    assert torch.equal(loaded.table, result.model.table)
    with pytest.raises(FileError, match="bfloat16 in the file, and torch.float32"):
        sc.load_pruned(tmp_path / "small", Plain())
