"""Numbers read off devices: nothing is lost or swapped where tensors differ in kind."""

from __future__ import annotations

import pytest
import torch

from secateur.runtime.values import moved, not_finite, numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_when_one_number_is_not_then_its_tensor_is_named(dtype, bad):
    tensors = {name: torch.ones(5, dtype=dtype) for name in "abc"}
    assert not_finite(tensors) == []
    tensors["b"][3] = bad
    assert not_finite(tensors) == ["b"]


def test_not_finite_when_there_is_no_number_then_it_is_fine():
    assert not_finite({"a": torch.empty(0), "b": torch.tensor(float("nan"))}) == ["b"]


def test_numbers_when_types_differ_then_they_keep_their_order():
    scalars = [torch.tensor(1.5), torch.tensor(2), torch.tensor([True]), torch.tensor(-3.5)]
    assert numbers(scalars) == [1.5, 2, True, -3.5]
    assert numbers([]) == []


def test_moved_when_vectors_are_there_already_then_they_are_the_same():
    vectors = [torch.ones(2), torch.zeros(3, dtype=torch.float64)]
    assert all(a is b for a, b in zip(moved(vectors, "cpu"), vectors, strict=True))


def test_moved_when_they_come_from_elsewhere_then_each_keeps_its_length_and_kind():
    vectors = [torch.ones(2), torch.zeros(3, dtype=torch.float64), torch.ones(4)]
    there = moved(vectors, "meta")
    assert [(v.device.type, v.shape, v.dtype) for v in there] == [
        ("meta", v.shape, v.dtype) for v in vectors
    ]
