"""Masks that are held as factors are what a dict of whole masks is."""

from __future__ import annotations

import copy
import io

import torch

import secateur
from secateur.types import Factored, factors_of


def masks() -> tuple[Factored, dict[str, torch.Tensor]]:
    rows, columns = torch.rand(6, 1) > 0.5, torch.rand(1, 4) > 0.5
    single = torch.rand(6, 4) > 0.2
    parts = [rows.expand(6, 4), columns.expand(6, 4), single]
    return Factored(*({"w": part} for part in parts)), {"w": parts[0] & parts[1] & parts[2]}


def test_factored_when_read_then_it_is_the_product() -> None:
    found, whole = masks()
    assert list(found) == list(whole)
    assert torch.equal(found["w"], whole["w"])
    assert [tuple(f.shape) for f in factors_of(found, "w")] == [(6, 1), (1, 4), (6, 4)]


def test_factored_when_stored_or_copied_then_plain_masks_come_back() -> None:
    found, whole = masks()
    file = io.BytesIO()
    torch.save({"masks": found}, file)
    file.seek(0)
    for again in (torch.load(file, weights_only=True)["masks"], copy.deepcopy(found)):
        assert isinstance(again, dict)
        assert torch.equal(again["w"], whole["w"])


def test_factored_when_written_to_then_the_mask_is_another() -> None:
    found, whole = masks()
    found.update(w=~whole["w"], v=whole["w"])
    assert torch.equal(found["w"], ~whole["w"])
    del found["v"]
    assert list(found) == ["w"]


def test_prune_when_a_weight_loses_rows_and_columns_then_its_mask_is_held_as_two_sides() -> None:
    net = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(3)))
    result = secateur.prune(net, torch.zeros(1, 32), 0.5, criterion="l2")
    assert sum(f.numel() for f in factors_of(result.masks, "1.weight")) == 64
    assert int(result.masks["1.weight"].sum()) == 16 * 16
