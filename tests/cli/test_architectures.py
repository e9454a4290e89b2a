"""The shell on real architectures: inspect ten of them, and prune → compare → export → run some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secateur import cli
from secateur.cli.models import load
from tests import zoo
from tests.streaming.checkpoints import saved

Run = Callable[..., Any]

ARCHITECTURES = {
    "torchvision:resnet18": 12,
    "torchvision:mobilenet_v2": 20,
    "torchvision:densenet121": 100,
    "torchvision:efficientnet_b0": 20,
    "torchvision:shufflenet_v2_x1_0": 10,
    "torchvision:convnext_tiny": 18,
    "timm:vit_tiny_patch16_224": 12,
    "timm:mixer_s32_224": 8,
    "bert": 4,
    "llama": 7,
}
"""MODEL → the least number of groups that it must have."""


def hugging_face(name: str, folder: Path) -> Path:
    """Save a small model with random weights, as transformers does."""
    import transformers

    shape = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    if name == "bert":
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**shape))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command, expects success and returns its --json."""
    zoo.torchvision_models()  # timm and transformers import torchvision, which may need help

    def command(*words: object) -> Any:
        with torch.random.fork_rng(devices=[]):
            status = cli.main([*map(str, words), "--json"])
        printed = capsys.readouterr()
        assert status == cli.DONE, printed.err
        return json.loads(printed.out[printed.out.index("{") :])

    return command


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_inspect_when_architecture_is_known_to_nobody_then_groups_are_found(
    run: Run, model: str, tmp_path: Path
) -> None:
    folder = model if ":" in model else str(hugging_face(model, tmp_path / model))
    facts = run("inspect", folder)
    assert len(facts["groups"]) >= ARCHITECTURES[model]
    assert facts["unknown"] == {}
    assert all(fact["reason"] for fact in facts["frozen"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize(
    "model", ["torchvision:resnet18", "timm:vit_tiny_patch16_224", "bert", "llama"]
)
def test_journey_when_pruned_from_the_shell_then_onnxruntime_runs_what_comes_out(
    run: Run, model: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    dense = model if ":" in model else str(hugging_face(model, tmp_path / model))
    small = tmp_path / "small"
    report = run("prune", dense, "--sparsity", "0.5", "--of", "macs", "--out", small)
    assert report["check"]["passed"]
    facts = run("compare", dense, small, "--runs", "3")
    assert facts["pruned"]["cost"]["macs"] <= 0.52 * facts["dense"]["cost"]["macs"]
    assert facts["pruned"]["bytes"] < facts["dense"]["bytes"]
    assert run("export", small, "--onnx")["onnx"]["difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
def test_prune_when_a_config_can_say_the_sizes_then_from_pretrained_loads_the_folder(
    run: Run, tmp_path: Path
) -> None:
    import transformers

    dense = hugging_face("llama", tmp_path / "llama")
    small = tmp_path / "small"
    words = ["--sparsity", "0.5", "--names", "*mlp*", "--uniform"]
    report = run("prune", dense, *words, "--out", small)
    assert "intermediate_size=32" in report["loads_with"]
    stock = transformers.LlamaForCausalLM.from_pretrained(small).eval()
    ours = load(str(small))
    with torch.no_grad():
        assert torch.allclose(
            stock(**ours.example).logits, ours.model(**ours.example).logits, atol=1e-6
        )


@pytest.mark.slow
def test_journey_when_each_command_is_a_process_then_exit_codes_and_files_carry_it(
    tmp_path: Path,
) -> None:
    networks = Path(__file__).parent / "networks.py"
    environment = os.environ | {"PYTHONPATH": str(networks.parents[2] / "src")}

    def shell(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "secateur.cli", *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    pruned = shell(
        "prune", f"{networks}:conv", "--input", "2,3,12,12", "--sparsity", "0.5", "--out", "small"
    )
    assert pruned.returncode == 0, pruned.stderr
    exported = shell("export", "small", "--onnx", "--torch-export", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["onnx"]["difference"] < 1e-5
    failed = shell("inspect", "nothing.py:net")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f"error: there is no file {tmp_path / 'nothing.py'}\n"
    assert shell("inspect").returncode == 2


@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
def test_prune_when_streamed_then_the_report_says_what_went(run: Run, tmp_path: Path) -> None:
    saved("llama", tmp_path / "llama")
    out, words = tmp_path / "small", ["--sparsity", "0.5", "--repair", "none"]
    words += ["--what", "width", "--criterion", "l1", "--stream"]
    told = run("prune", tmp_path / "llama", *words, "--out", out)
    assert told["after"]["params"] < told["before"]["params"]
    assert told["check"]["passed"]
    assert run("report", out) == json.loads((out / "report.json").read_text())
    (out / "report.json").unlink()
    drawn = run("report", out)
    for name in ("params", "macs", "state_bytes"):
        assert drawn["before"][name] == told["before"][name], name
        assert drawn["after"][name] == told["after"][name], name
    assert drawn["structure"]["groups"] == told["structure"]["groups"]
    assert drawn["loads_with"] == "LlamaForCausalLM.from_pretrained"


@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("command", ["inspect", "prune", "report"])
def test_command_when_weights_are_cut_off_then_names_the_file(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.torchvision_models()
    folder = hugging_face("llama", tmp_path / "llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    words = ["--sparsity", "0.5", "--out", str(tmp_path / "out")] if command == "prune" else []
    assert cli.main([command, str(folder), *words]) == cli.FAILED
    assert f"{file} is damaged" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of libraries, about themselves
@pytest.mark.parametrize("window", ["0", "-3"])
def test_evaluate_when_a_window_holds_nothing_then_says_so(
    window: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.torchvision_models()
    folder = hugging_face("llama", tmp_path / "llama")
    np.savez(tmp_path / "ids.npz", ids=np.arange(64) % 50)
    words = ["evaluate", str(folder), "--data", str(tmp_path / "ids.npz"), "--window", window]
    assert cli.main(words) == cli.FAILED
    assert "window" in capsys.readouterr().err
