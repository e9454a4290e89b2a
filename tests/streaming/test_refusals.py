"""What cannot be streamed is said first, by name, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.errors import ConfigError, FileError, ModelError
from tests.streaming.checkpoints import batches, example, saved

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hidden": ({"what": ["hidden"]}, "outside of one block"),
    "depth": ({"what": ["depth"]}, "drops whole blocks"),
    "global": ({"scope": "global"}, "all blocks are needed"),
    "error": ({"allocate": "error"}, "all blocks are needed"),
    "gradients": ({"criterion": "taylor"}, "gradients"),
    "no data": ({"data": None}, "needs data"),
    "nothing": ({"names": ["lm_head"]}, "selects nothing"),
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    saved("llama", folder)
    return folder


@pytest.mark.parametrize("case", REFUSED)
def test_prune_checkpoint_when_it_needs_all_blocks_then_says_so_and_writes_nothing(
    case: str, dense: Path, tmp_path: Path
) -> None:
    settings, words = REFUSED[case]
    settings = {"sparsity": 0.5, "data": batches(1), **settings}
    with pytest.raises(ConfigError, match=words):
        sc.prune_checkpoint(dense, tmp_path / "out", example(), **settings)
    assert not (tmp_path / "out").exists()


def test_prune_checkpoint_when_there_are_two_stacks_then_says_what_no_chain_is(
    tmp_path: Path,
) -> None:
    saved("t5", tmp_path / "dense")
    x = {"input_ids": torch.arange(8)[None], "decoder_input_ids": torch.arange(8)[None]}
    with pytest.raises(ModelError, match="one after the other"):
        sc.prune_checkpoint(tmp_path / "dense", tmp_path / "out", x, 0.5, data=[x])


def test_prune_checkpoint_when_a_tensor_is_missing_then_names_it(
    dense: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    shutil.copytree(dense, tmp_path / "dense")
    index = tmp_path / "dense" / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    del said["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    index.write_text(json.dumps(said))
    with pytest.raises(FileError, match=r"lacks 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        sc.prune_checkpoint(tmp_path / "dense", tmp_path / "out", example(), 0.5, data=batches(1))


def test_prune_checkpoint_when_it_would_write_over_the_dense_model_then_refuses(
    dense: Path,
) -> None:
    with pytest.raises(ConfigError, match="elsewhere"):
        sc.prune_checkpoint(dense, dense, example(), 0.5, data=batches(1))
