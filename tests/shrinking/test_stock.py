"""A folder of a model of transformers is data: no code that its config names is fetched or run."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.cli.models import load
from secateur.cli.options import Given
from secateur.errors import FileError
from secateur.runtime.configs import check_no_code
from secateur.runtime.together import seal_of
from secateur.shrinking.stock import CONFIG, _config
from tests import faults, zoo

FORMS: dict[str, Any] = {
    "attn_implementation": "somebody/kernel",
    "_attn_implementation": "somebody/kernel",
    "_attn_implementation_internal": "somebody/kernel",
    "experts_implementation": "somebody/kernel",
    "auto_map": {"AutoConfig": "somebody/code--config.Config"},
}


EXAMPLE = {"input_ids": torch.arange(1, 7)[None], "use_cache": False}


def transformers() -> Any:
    zoo.torchvision_models()  # transformers imports torchvision, which may need help
    return pytest.importorskip("transformers")


def llama_config() -> Any:
    return transformers().LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = transformers().LlamaForCausalLM(llama_config())
    result = sc.prune(model, EXAMPLE, 0.25, what=["width"])
    place: Path = tmp_path_factory.mktemp("stock") / "small"
    result.save(place)
    return place


@pytest.mark.parametrize("within", [(), ("text_config",), ("a", "b")], ids=str)
@pytest.mark.parametrize("key", FORMS)
def test_config_when_it_names_code_then_that_is_left_out(
    folder: Path, key: str, within: tuple[str, ...]
) -> None:
    told = json.loads((folder / CONFIG).read_text())
    inner = told
    for name in within:
        inner = inner.setdefault(name, {})
    inner[key] = FORMS[key]
    config = _config(json.dumps(told), folder / CONFIG)
    assert "somebody" not in str(vars(config))
    assert config.intermediate_size == 18


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan"), 1.5])
def test_config_when_it_has_a_number_that_json_has_no_word_for_then_it_is_read(
    folder: Path, number: float
) -> None:
    from transformers import LlamaConfig

    dense = LlamaConfig(limit=[0.0, number], inner={"most": number})
    told = dense.to_json_string(use_diff=False)
    config = _config(told, folder / CONFIG)
    for found in (config.limit[1], config.inner["most"]):
        assert found == number or (found != found and number != number)
    odd = json.loads(told) | {"odd": {"__float__": "four"}}
    assert _config(json.dumps(odd), folder / CONFIG).odd == {"__float__": "four"}


def asks(folder: Path, out: Path) -> None:
    example = {"input_ids": torch.arange(1, 7)[None]}
    sc.prune_checkpoint(folder, out, example, 0.25, repair="none")


def loads(folder: Path, _: Path) -> None:
    load(str(folder), Given())


@pytest.mark.parametrize("ask", [asks, loads])
@pytest.mark.parametrize("within", [(), ("text_config",)], ids=str)
@pytest.mark.parametrize("key", [key for key in FORMS if key != "auto_map"])
def test_folder_when_its_config_names_a_kernel_then_it_is_refused_before_anything(
    folder: Path, tmp_path: Path, ask: Any, key: str, within: tuple[str, ...]
) -> None:
    dense = tmp_path / "dense"
    shutil.copytree(folder, dense, ignore=shutil.ignore_patterns("plan.json", "record.json"))
    told = json.loads((dense / CONFIG).read_text())
    inner = told
    for name in within:
        inner = inner.setdefault(name, {})
    for value in (FORMS[key], {"": FORMS[key]}):
        inner[key] = value
        (dense / CONFIG).write_text(json.dumps(told))
        with pytest.raises(FileError, match="names code to fetch"):
            ask(dense, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    inner[key] = "sdpa" if "attn" in key else "eager"
    (dense / CONFIG).write_text(json.dumps(told))
    check_no_code(dense / CONFIG)


def test_from_pretrained_when_a_forged_config_names_code_then_it_is_the_model_all_the_same(
    folder: Path,
) -> None:
    expected = sc.from_pretrained(folder).state_dict()
    told = json.loads((folder / CONFIG).read_text()) | FORMS
    (folder / CONFIG).write_text(json.dumps(told))
    seal = asdict(seal_of(folder / CONFIG))
    faults.resign(folder, lambda document: document["files"].__setitem__(CONFIG, seal))
    found = sc.from_pretrained(folder)
    assert "somebody" not in str(vars(found.config))
    assert found.state_dict().keys() == expected.keys()


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"model_type": "no such"}', "{", "1e999"])
def test_config_when_it_is_of_no_model_then_the_error_says_so(tmp_path: Path, text: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(FileError, match="describes no model"):
        _config(text, tmp_path / CONFIG)


@pytest.mark.parametrize(
    "how",
    [
        {"sparsity": 0.25, "what": ["width"], "uniform": True},
        {"granularity": "2:4", "criterion": "l1"},
    ],
    ids=["cut", "masked alone"],
)
@pytest.mark.parametrize("wrong", ["another tensor", "an error", "a config that is refused"])
def test_save_when_the_stock_loader_makes_another_model_then_the_result_says_so(
    how: dict[str, Any], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, example = transformers().LlamaForCausalLM, EXAMPLE
    model = kind(llama_config()).eval()
    result = sc.prune(model, example, **how)
    assert "secateur.from_pretrained" not in result.loads_with
    with monkeypatch.context() as patched:
        own = kind.from_pretrained.__func__

        def other(cls: Any, *args: Any, **kwargs: Any) -> Any:
            if wrong == "an error":
                raise RuntimeError("of a version that cannot read it")
            found = own(cls, *args, **kwargs)
            with torch.no_grad():
                found.model.embed_tokens.weight[1] = 0  # as where a row of padding is made anew
            return found

        def refuse(*_: Any) -> None:
            raise ValueError("a validator of the config found two numbers that contradict")

        if wrong == "a config that is refused":
            patched.setattr(kind, "save_pretrained", refuse)
        patched.setattr(kind, "from_pretrained", classmethod(other))
        result.save(tmp_path)
        assert not result.ordinary
        assert "secateur.from_pretrained, once saved; not with the dense" in result.loads_with
        assert "was tried" in result.loads_with
    again = sc.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**example).logits, result.model(**example).logits)
    result.save(tmp_path)  # tried again
    assert result.ordinary
    assert "was tried" not in result.loads_with
