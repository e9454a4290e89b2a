"""Every command takes every kind of MODEL, and Python saves the folder that the shell does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur import cli
from secateur.shrinking.history import History
from tests import zoo

NETWORKS = f"{Path(__file__).parent / 'networks.py'}"
COMMANDS: dict[str, Callable[[str, Path], list[str]]] = {
    "inspect": lambda model, _: [model],
    "compare": lambda model, _: [model, model, "--runs", "1"],
    "export": lambda model, out: [model, "--torch-export", "--out", str(out)],
    "report": lambda model, out: [model, "--out", str(out)],
    "evaluate": lambda model, out: [model, "--data", str(out / "ids.npz"), "--window", "8"],
}
"""Command → its words, given MODEL and a folder with ``ids.npz``."""


@pytest.fixture(scope="module")
def transformers() -> Any:
    """Return transformers, which imports torchvision, which may need help."""
    zoo.torchvision_models()
    return pytest.importorskip("transformers")


def llama(transformers: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


IDS = torch.arange(32).view(4, 8) % 20
EXAMPLE = {"input_ids": IDS[:1], "use_cache": False}
MLP = {"names": ["*mlp*"], "exclude": ["*embed_tokens"], "criterion": "l2"}
CUT: dict[str, dict[str, Any]] = {
    "uniform": {"sparsity": 0.5, "uniform": True, **MLP},
    "each its width": {"allocation": {"*.0.mlp*": 0.5, "*.1.mlp*": 0.25}, **MLP},
    "2:4": {"granularity": "2:4", "names": ["*proj"], "criterion": "magnitude"},
    "weights": {"granularity": "element", "sparsity": 0.5, "criterion": "magnitude"},
}
"""What was removed from a model of transformers → the settings."""
SOURCES = ["module:callable", "its folder", "Hugging Face", *CUT, "saved in Python"]


def source(kind: str, folder: Path, transformers: Any) -> list[str]:
    """Return the words for one kind of MODEL, which reads ids and writes logits."""
    place = [f"{NETWORKS}:reader"]
    if kind == "module:callable":
        return place
    if kind == "its folder":
        assert cli.main(["prune", *place, "--sparsity", "0.5", "--out", str(folder)]) == cli.DONE
        return [str(folder), "--trust"]
    if kind == "saved in Python":
        from tests.cli.networks import reader

        net, example = reader()
        sc.prune(net, example, 0.5, "l2").save(folder)
        return [str(folder), "--dense", *place]
    model = llama(transformers)
    if kind == "Hugging Face":
        model.save_pretrained(folder)
    else:
        sc.prune(model, EXAMPLE, **CUT[kind]).save(folder)
    return [str(folder)]


@pytest.mark.slow  # imports transformers
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", SOURCES)
def test_command_when_given_any_kind_of_model_then_takes_it(
    command: str,
    kind: str,
    tmp_path: Path,
    transformers: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.savez(tmp_path / "ids.npz", IDS.numpy())
    model, *more = source(kind, tmp_path / "model", transformers)
    capsys.readouterr()
    words = [command, *COMMANDS[command](model, tmp_path), *more]
    if command == "compare" and kind == "saved in Python":
        words[1:3] = [f"{NETWORKS}:reader", model]
        words = words[:-2]
    assert cli.main([*words, "--json"] if command != "report" else words) == cli.DONE, (
        capsys.readouterr().err
    )
    printed = capsys.readouterr().out
    if command == "report":
        assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    elif command == "evaluate":
        assert json.loads(printed)["predictions"] == 28
    else:
        assert json.loads(printed)


@pytest.mark.slow  # imports transformers
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("kind", CUT)
def test_folder_when_saved_in_python_or_by_the_shell_then_holds_the_same(
    kind: str, tmp_path: Path, transformers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    llama(transformers).save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "chat_template.jinja").write_text("{{ messages }}")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "dense").eval()
    result = sc.prune(model, EXAMPLE, **CUT[kind])
    result.save(tmp_path / "python")
    (tmp_path / "settings.json").write_text(json.dumps(CUT[kind]))
    shell = ["--config", str(tmp_path / "settings.json"), "--out", str(tmp_path / "shell")]
    assert cli.main(["prune", str(tmp_path / "dense"), *shell]) == cli.DONE, capsys.readouterr()
    report = {"report.json", "report.html"}
    names = [{path.name for path in (tmp_path / each).iterdir()} for each in ("python", "shell")]
    assert names[0] == names[1] - report
    assert "chat_template.jinja" in names[0]
    ordinary = kind != "each its width"
    assert ("config.json" in names[0], "dense_config.json" in names[0]) == (ordinary, not ordinary)
    ways = [sc.from_pretrained]
    if ordinary:
        ways.append(transformers.AutoModelForCausalLM.from_pretrained)
    else:
        assert result.loads_with.startswith("secateur.from_pretrained")
    for folder in (tmp_path / "python", tmp_path / "shell"):
        for load in ways:
            again = load(folder).eval()
            with torch.no_grad():
                assert torch.equal(again(IDS).logits, result.model(IDS).logits)
                again.generate(IDS[:, :4], max_new_tokens=4, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("words", [["inspect"], ["export", "--torch-export"], ["report"]])
def test_command_when_a_folder_does_not_say_how_it_is_built_then_says_what_to_give(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    sc.prune(net, torch.zeros(1, 8), sparsity=0.5).save(tmp_path / "small")
    assert cli.main([words[0], str(tmp_path / "small"), *words[1:]]) == cli.FAILED
    said = capsys.readouterr().err
    assert "torch.nn.modules.container.Sequential" in said
    assert "--dense module:callable" in said


def test_inspect_when_python_saved_a_folder_then_dense_and_its_example_say_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.cli.networks import conv

    result = sc.prune(conv(6), torch.zeros(2, 3, 12, 12), sparsity=0.5)
    small = result.save(tmp_path / "small")
    words = ["inspect", str(small), "--dense", f"{NETWORKS}:conv", "--arg", "width=6", "--json"]
    assert cli.main(words) == cli.DONE, capsys.readouterr().err
    facts = json.loads(capsys.readouterr().out)
    assert [group["size"] for group in facts["groups"]] == [3, 6]
    assert History.of(result.model).steps


def test_save_when_a_folder_held_another_model_then_nothing_of_that_stays(tmp_path: Path) -> None:
    for name in ("report.json", "report.html"):
        (tmp_path / name).write_text("of another")
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    sc.prune(net, torch.zeros(1, 8), sparsity=0.5).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "plan.json", "record.json"}


@pytest.mark.slow  # imports transformers
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
def test_folder_when_the_class_is_the_users_own_then_its_dense_model_is_named(
    tmp_path: Path, transformers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mine(transformers.LlamaForCausalLM):  # type: ignore[misc]
        pass

    model = Mine(llama(transformers).config).eval()
    small = sc.prune(model, EXAMPLE, **CUT["uniform"]).save(tmp_path / "small")
    assert Mine.from_pretrained(small).config.intermediate_size == 16
    assert cli.main(["inspect", str(small)]) == cli.FAILED
    assert "Mine: say it with --dense" in capsys.readouterr().err
    with pytest.raises(sc.errors.FileError, match="names no model of transformers"):
        sc.from_pretrained(small)


@pytest.mark.slow  # imports transformers
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("what", ["pickled", "no class", "another class"])
@pytest.mark.parametrize("command", ["prune", "inspect"])
def test_command_when_weights_would_be_random_or_lost_then_refused(
    command: str, what: str, tmp_path: Path, transformers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dense"
    model = llama(transformers)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    if what == "pickled":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        said = "pytorch_model.bin is not read"
    elif what == "no class":
        del config["architectures"]
        said = "lm_head.weight would be lost"
    else:
        config["architectures"] = ["LlamaForSequenceClassification"]
        said = "score.weight would be random"
    (folder / "config.json").write_text(json.dumps(config))
    more = {"prune": ["--sparsity", "0.5", "--out", str(tmp_path / "small")], "inspect": []}
    assert cli.main([command, str(folder), *more[command]]) != cli.DONE
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "small").exists()
