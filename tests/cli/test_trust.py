"""A folder is data: what it says is built or refused, and never runs code that it chose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur import cli, prune
from secateur.cli.models import RECORD, Source, load, remember
from secateur.cli.options import Given
from secateur.errors import ConfigError, FileError

NETWORKS = Path(__file__).parent / "networks.py"
CONV = f"{NETWORKS}:conv"

HOSTILE: dict[str, dict[str, Any]] = {
    "os.system": {"model": "os:system", "arguments": {"command": "touch ran"}},
    "a function of pathlib": {"model": "pathlib:Path.touch", "arguments": {"self": "ran"}},
    "a file of the folder": {"model": "small/evil.py:net"},
    "a module without a name": {"model": "evil"},
    "the inputs": {"model": "torchvision:resnet18", "input": ["evil:run"]},
    "the inputs of a file": {"model": "torchvision:resnet18", "input": ["small/evil.py:net"]},
    "one input of two": {"model": "torchvision:resnet18", "input": ["1,3", "evil:run"]},
    "a checkpoint": {"model": "timm:resnet18", "arguments": {"checkpoint_path": "evil.pth"}},
    "nested text": {"model": "timm:resnet18", "arguments": {"pretrained_cfg": {"file": "e.pth"}}},
    "a download": {"model": "torchvision:resnet18", "arguments": {"weights": "DEFAULT"}},
    "a download, too": {"model": "timm:resnet18", "arguments": {"pretrained": True}},
    "remote code": {"model": "small", "arguments": {"trust_remote_code": True}},
    "a subfolder": {"model": "small", "arguments": {"subfolder": "../.."}},
    "huge inputs": {"model": "torchvision:resnet18", "input": ["99999999,99999999"]},
    "long words": {"model": "os:" + "x" * 10**6, "arguments": {"y" * 10**6: "z" * 10**6}},
}
DAMAGED = (
    "",
    "[]",
    "null",
    '{"source": 3}',
    '{"source": {"model": 3, "arguments": {}}}',
    '{"source": {"model": "torchvision:resnet18", "arguments": []}}',
    '{"source": {"model": "torchvision:resnet18", "arguments": {}, "input": [3]}}',
    '{"source": {"model": "torchvision:resnet18", "arguments": {}, "weights": 3}}',
    "[" * 10**5,
    '{"source": {"model": "torchvision:resnet18", "arguments": {"a": ' + "9" * 10**5 + "}}}",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a model, in a folder whose evil.py would leave a file behind."""
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    prune(net, torch.zeros(1, 8), sparsity=0.5).save(tmp_path / "small")
    evil = "import pathlib\npathlib.Path('ran').touch()\ndef run(*_): pass\nnet = run\n"
    for place in (tmp_path, tmp_path / "small"):
        (place / "evil.py").write_text(evil)
    (tmp_path / "small" / "config.json").write_text('{"model_type": "bert"}')
    return tmp_path / "small"


def said(folder: Path, source: dict[str, Any]) -> None:
    (folder / RECORD).write_text(
        json.dumps({"source": {"arguments": {}, "weights": None, "input": ["1,8"], **source}})
    )


@pytest.mark.parametrize(
    ("command", "name"),
    [*(("inspect", name) for name in HOSTILE), ("export", "os.system"), ("prune", "os.system")],
)
def test_command_when_a_record_asks_for_code_then_it_is_named_and_not_run(
    folder: Path, command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said(folder, HOSTILE[name])
    more = {"export": ["--onnx"], "prune": ["--sparsity", "0.5", "--dry-run"], "inspect": []}
    assert cli.main([command, "small", *more[command]]) == cli.FAILED
    printed = capsys.readouterr().err
    assert "--trust" in printed
    assert "Traceback" not in printed
    assert len(printed) < 2000
    assert not (folder.parent / "ran").exists()


def test_command_when_a_record_asks_for_code_then_the_message_says_what_would_be_imported(
    folder: Path,
) -> None:
    said(folder, HOSTILE["os.system"])
    with pytest.raises(ConfigError, match="asks to import 'os' and to call 'system'"):
        load("small")


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_load_when_a_record_is_damaged_then_file_error(folder: Path, text: str) -> None:
    (folder / RECORD).write_text(text)
    with pytest.raises(FileError, match="does not say how the dense model is built"):
        load("small")


def test_load_when_a_record_is_of_a_newer_version_then_it_says_so(folder: Path) -> None:
    (folder / RECORD).write_text('{"schema": 2, "source": {"model": "a:b", "arguments": {}}}')
    with pytest.raises(FileError, match="newer than 1: upgrade"):
        load("small")


@pytest.fixture
def mine(tmp_path: Path) -> str:
    net = load(CONV, Given(input=["2,3,12,12"]))
    prune(net.model, net.example, sparsity=0.5).save(tmp_path / "mine")
    remember(tmp_path / "mine", Source(CONV, {}, None, ("2,3,12,12",)))
    return str(tmp_path / "mine")


def test_load_when_it_is_trusted_then_what_it_names_is_called(mine: str) -> None:
    with pytest.raises(ConfigError, match="--trust"):
        load(mine)
    assert load(mine, Given(trust=True)).model[0].out_channels == 4  # type: ignore[index]


def test_compare_when_the_dense_model_is_named_then_the_folder_needs_no_trust(
    mine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", CONV, mine, "--input", "2,3,12,12", "--runs", "2"]
    assert cli.main(words) == cli.DONE
    # whatever the folder names: it is not that which is built
    said(Path(mine), {"model": "os:system", "arguments": {"command": "touch ran"}})
    assert cli.main(words) == cli.DONE
    assert cli.main([*words, "--arg", "width=6"]) == cli.FAILED
    assert "does not fit this Sequential" in capsys.readouterr().err
    assert not Path("ran").exists()


def test_hugging_face_when_a_folder_brings_code_then_it_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'ran').touch()"
    )
    maps = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    text = json.dumps({"model_type": "evil", "auto_map": maps, "architectures": ["Model"]})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Exception, match="trust_remote_code"):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()
