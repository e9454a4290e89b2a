"""MODEL, --arg, --weights and --input: what they mean, and what is said when they mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from secateur.cli.models import RECORD, Source, load, recalled, remember
from secateur.cli.options import Given
from secateur.errors import ConfigError, FileError

NETWORKS = f"{Path(__file__).parent / 'networks.py'}"


def test_load_when_function_in_a_file_with_arguments_then_they_reach_it() -> None:
    loaded = load(f"{NETWORKS}:conv", Given(["width=6"], input=["2,3,12,12"]))
    assert loaded.model[0].out_channels == 6  # type: ignore[index]
    assert loaded.example.shape == (2, 3, 12, 12)
    assert not loaded.model.training


def test_load_when_importable_module_then_the_same_without_a_file() -> None:
    loaded = load(
        "secateur.demo.digits:DigitsNet", Given(["width=4", "blocks=1"], input=["1,1,8,8"])
    )
    assert loaded.name == "DigitsNet"


def test_load_when_built_twice_then_weights_are_equal() -> None:
    first, second = (load(f"{NETWORKS}:with_example").model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("inputs", "shapes"),
    [
        (["1,6:20", "1,4"], [(1, 6), (1, 4)]),
        (["tokens=1,6:20", "features=1,4"], [(1, 6), (1, 4)]),
    ],
)
def test_load_when_several_inputs_then_by_place_or_by_name(
    inputs: list[str], shapes: list[tuple[int, ...]]
) -> None:
    loaded = load(f"{NETWORKS}:TwoInputs", Given(input=inputs))
    example = loaded.example
    values = list(example.values()) if isinstance(example, dict) else list(example)
    assert [tuple(value.shape) for value in values] == shapes
    assert values[0].dtype == torch.int64
    assert int(values[0].max()) < 20


def test_load_when_function_gives_the_example_then_it_is_used() -> None:
    assert torch.equal(load(f"{NETWORKS}:with_example").example, torch.ones(2, 3, 12, 12))
    other = load(f"{NETWORKS}:conv", Given(input=[f"{NETWORKS}:example"]))
    assert torch.equal(other.example, torch.ones(2, 3, 12, 12))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (f"{NETWORKS}:cnov", {}, "Did you mean 'conv'?"),
        (f"{NETWORKS}:NUMBER", {}, "is a int, not a model"),
        ("nowhere.py:net", {}, "there is no file"),
        ("nowhere_at_all:net", {}, "no module 'nowhere_at_all'"),
        ("resnet18", {}, "is no MODEL: give module:callable"),
        (f"{NETWORKS}:conv", {}, "--input 1,3,224,224"),
        (f"{NETWORKS}:conv", {"arg": ["width"]}, "write key=value"),
        (f"{NETWORKS}:conv", {"input": ["1x3"]}, "write a shape"),
        (f"{NETWORKS}:conv", {"input": ["1,3", "a=1,3"]}, "all inputs by name, or none"),
        (f"{NETWORKS}:conv", {"weights": Path("net.pt")}, ".safetensors only"),
    ],
)
def test_load_when_something_is_wrong_then_the_error_says_what_to_write(
    model: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(model, Given(**options))  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_load_when_folder_is_empty_then_both_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"record\.json of secateur nor a config\.json"):
        load(str(tmp_path))


def test_weights_when_they_fit_then_are_loaded_and_when_not_then_differences_are_named(
    tmp_path: Path,
) -> None:
    state = load(f"{NETWORKS}:with_example").model.state_dict()
    ones = {name: torch.ones_like(value) for name, value in state.items()}
    save_file(ones, tmp_path / "good.safetensors")
    loaded = load(f"{NETWORKS}:with_example", Given(weights=tmp_path / "good.safetensors"))
    assert all(bool((value == 1).all()) for value in loaded.model.state_dict().values())
    ones["0.weigth"] = ones.pop("0.weight")
    save_file(ones, tmp_path / "bad.safetensors")
    with pytest.raises(ConfigError, match=r"lacks '0.weight'. Did you mean '0.weigth'"):
        load(f"{NETWORKS}:with_example", Given(weights=tmp_path / "bad.safetensors"))


def test_source_when_remembered_then_recalled_and_a_foreign_record_is_refused(
    tmp_path: Path,
) -> None:
    source = Source("net:build", {"width": 3}, None, ("1,3",))
    remember(tmp_path, source, accuracy=99.0)
    assert recalled(tmp_path) == source
    (tmp_path / RECORD).write_text("[]")
    with pytest.raises(FileError, match="does not say how"):
        recalled(tmp_path)
