"""Files are whole or as they were, and what is no file of ours is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from secateur.errors import FileError
from secateur.runtime.io import read_tensors, read_text, whole, write_tensors, write_text


def test_whole_when_the_block_fails_then_the_old_file_stays_alone(tmp_path: Path):
    write_text(tmp_path / "a", "old")

    def half() -> None:
        with whole(tmp_path / "a") as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert read_text(tmp_path / "a") == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_write_text_when_the_folder_is_missing_then_it_is_made(tmp_path: Path):
    write_text(tmp_path / "deep" / "a", "é")
    assert read_text(tmp_path / "deep" / "a") == "é"


@pytest.mark.parametrize("read", [read_text, read_tensors])
def test_read_when_there_is_no_file_then_the_error_names_it(read, tmp_path: Path):
    with pytest.raises(FileError, match=r"b\.x cannot be read: No such file"):
        read(tmp_path / "b.x")


def test_read_text_when_it_is_no_text_or_too_large_then_file_error(tmp_path: Path, monkeypatch):
    (tmp_path / "a").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FileError, match="is no text"):
        read_text(tmp_path / "a")
    monkeypatch.setattr("secateur.runtime.io.MOST_TEXT", 2)
    with pytest.raises(FileError, match="3 bytes"):
        read_text(tmp_path / "a")


def test_write_tensors_when_they_share_memory_then_each_comes_back(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    given = {"a": base, "b": base, "row": base[1], "t": base.t(), "none": torch.zeros(0, 2)}
    write_tensors(tmp_path / "x", given)
    found = read_tensors(tmp_path / "x")
    assert found.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_read_tensors_when_truncated_then_file_error(tmp_path: Path, keep: int):
    write_tensors(tmp_path / "x", {"a": torch.ones(8)})
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[:keep])
    with pytest.raises(FileError, match="is damaged, or no safetensors file"):
        read_tensors(tmp_path / "x")


def test_read_tensors_when_it_is_a_pickle_then_it_is_not_unpickled(tmp_path: Path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(FileError, match="is damaged, or no safetensors file"):
        read_tensors(tmp_path / "x")


def test_write_tensors_when_written_then_who_may_read_a_text_may_read_them(tmp_path: Path):
    write_text(tmp_path / "a.txt", "a")
    write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
