"""Batches of calibration inputs: how they are passed, what is padding, and what is refused."""

from __future__ import annotations

import math
import re
from collections import UserDict, defaultdict, namedtuple
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import ConfigError
from secateur.runtime import batches as batches_module
from secateur.runtime.batches import arguments, call, checked, held, padding

X, Y = torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)
Pair = namedtuple("Pair", ["x", "y"])


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    name: str = "it"


class Sum(nn.Module):
    """Adds what it is given, and writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x.mul_(2)
        return (x if y is None else x + y) * self.weight


class Graph:
    """Moves in place, as those of torch_geometric do."""

    def __init__(self) -> None:
        self.x = X

    def to(self, device: torch.device) -> Graph:
        self.x = self.x.to(device)
        return self


class OfOne(nn.Module):
    """Is given one thing, whatever it is."""

    def forward(self, one: Any) -> Any:
        return one


@pytest.mark.parametrize(
    "batch",
    [X, (X,), [X], {"x": X}, UserDict(x=X), namedtuple("One", "x")(X)],
    ids=["tensor", "tuple", "list", "dict", "BatchEncoding", "namedtuple"],
)
def test_call_when_batch_is_of_any_form_then_it_is_passed_and_stays_as_it_is(batch):
    before = X.clone()
    assert torch.equal(call(Sum(), batch), 2 * before)
    assert torch.equal(X, before)


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], Pair(X, Y), {"y": Y, "x": X}])
def test_call_when_there_are_two_inputs_then_each_arrives_as_itself(batch):
    assert torch.equal(call(Sum(), batch), 2 * X + Y)


@pytest.mark.parametrize(
    ("batch", "inner"),
    [
        (Frozen(X), lambda one: one.x),
        (((X, Y),), lambda one: one[0]),
        ((Pair(X, Y),), lambda one: one.x),
        (({"x": X},), lambda one: one["x"]),
        ((UserDict(x=X),), lambda one: one["x"]),
        ({1: X}, lambda one: one[1]),
        ((defaultdict(list, x=X),), lambda one: one["x"]),
    ],
)
def test_call_when_it_is_one_argument_then_it_keeps_its_kind_and_holds_copies(batch, inner):
    one = batch[0] if isinstance(batch, tuple) else batch
    given = call(OfOne(), batch)
    assert type(given) is type(one)
    assert torch.equal(inner(given), X)
    assert inner(one) is X
    assert inner(given) is not X


def test_call_when_a_mapping_cannot_be_written_to_then_its_copy_is_a_dict():
    given = call(OfOne(), (MappingProxyType({"x": X}),))
    assert torch.equal(given["x"], X)
    assert given["x"] is not X


def test_call_when_the_model_refuses_a_nested_tensor_then_that_is_named():
    with pytest.raises(ConfigError, match="data: this batch, nested tensor: Conv2d refuses it"):
        call(nn.Conv2d(1, 1, 1), torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged))


def test_call_when_it_is_a_packed_sequence_then_it_is_one_argument():
    packed = pack_sequence([torch.ones(4, 2), torch.ones(1, 2)])
    _, (hidden, _) = call(nn.LSTM(2, 3), packed)
    assert hidden.shape == (1, 2, 3)


def test_arguments_when_a_tensor_is_given_twice_then_it_is_one_tensor_still():
    args, kwargs = arguments(OfOne(), {"a": X, "b": [X]})
    assert args == ()
    assert kwargs["a"] is kwargs["b"][0]


def test_arguments_when_the_model_is_elsewhere_then_inputs_move_there(monkeypatch):
    graph = Graph()
    monkeypatch.setattr(batches_module, "_device", lambda model: torch.device("meta"))
    batch = (X, Frozen(X), graph, [UserDict(x=X)])
    (tensor, frozen, moved, (inner,)), _ = arguments(OfOne(), batch)
    there = [tensor, frozen.x, moved.x, inner["x"]]
    assert {x.device.type for x in there} == {"meta"}
    assert batch[2] is graph
    assert {x.device.type for x in (X, batch[1].x, graph.x, batch[3][0]["x"])} == {"cpu"}


def test_arguments_when_weights_are_on_meta_then_inputs_stay_where_they_are():
    with torch.device("meta"):
        model = nn.Linear(1, 1)
    assert [x.device.type for x in arguments(model, X)[0]] == ["cpu"]


@pytest.mark.parametrize("requires", [True, False])
def test_arguments_when_inputs_need_gradients_then_their_copies_do(requires):
    (copy,), _ = arguments(OfOne(), X.clone().requires_grad_(requires))
    assert copy.requires_grad is requires
    assert copy.is_leaf


class Encoder(nn.Module):
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        src_key_padding_mask: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> Tensor:
        return input_ids


IDS = torch.zeros(2, 3, dtype=torch.long)
DATA = torch.tensor([[1, 1, 0], [1, 1, 1]])
ADDED = torch.zeros(2, 3).masked_fill(DATA == 0, -math.inf)


@pytest.mark.parametrize(
    "batch",
    [
        {"attention_mask": DATA},
        {"attention_mask": DATA.bool()},
        {"attention_mask": DATA.half()},
        {"attention_mask": DATA.cumsum(1) * DATA},  # packed: several texts in one row
        {"attention_mask": ADDED},
        {"attention_mask": ADDED.clamp(min=-1e4)},
        {"decoder_attention_mask": DATA},
        {"src_key_padding_mask": DATA == 0},
        {"src_key_padding_mask": (DATA == 0).byte()},
        {"src_key_padding_mask": ADDED},
        UserDict(attention_mask=DATA),
        (IDS, DATA),
        [IDS, DATA],
        ({"input_ids": IDS, "attention_mask": DATA},),
        ({"attention_mask": DATA}, IDS[:, 0]),  # inputs and labels, for a loss
        {"batch": {"attention_mask": DATA}},
    ],
)
def test_padding_when_a_batch_carries_a_mask_then_true_is_data(batch):
    (mask,) = padding(Encoder(), batch)
    assert mask.dtype is torch.bool
    assert torch.equal(mask, DATA == 1)


@pytest.mark.parametrize(
    "batch",
    [
        IDS,
        {"input_ids": IDS, "labels": DATA},
        {"attention_mask": torch.ones(2, 1, 3, 3)},
        {"attention_mask": None},
        (IDS, None),
    ],
)
def test_padding_when_nothing_says_what_is_padding_then_there_is_no_mask(batch):
    assert padding(Encoder(), batch) == []


def test_padding_when_an_added_mask_hides_nothing_then_all_is_data():
    (mask,) = padding(Encoder(), {"attention_mask": torch.zeros(2, 3)})
    assert mask.all()


def test_padding_when_several_masks_are_given_then_all_are_found_by_position_too():
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    x = torch.ones(2, 3, 4)
    (mask,) = padding(attention, (x, x, x, DATA == 0))
    assert torch.equal(mask, DATA == 1)
    (single,) = padding(attention, (x[0], x[0], x[0], DATA[0] == 0))
    assert torch.equal(single, DATA[:1] == 1)
    both = {"tgt_key_padding_mask": DATA == 0, "memory_key_padding_mask": DATA == 1}
    assert [m.tolist() for m in padding(nn.Transformer(4, 2, batch_first=True), both)] == [
        (DATA == 1).tolist(),
        (DATA == 0).tolist(),
    ]


def test_padding_when_a_tokenizer_pads_then_it_is_seen():
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"input_ids": IDS, "attention_mask": DATA})
    assert torch.equal(padding(Encoder(), batch)[0], DATA == 1)


def frame() -> Any:
    """Return what looks like a table of pandas, which need not be installed."""
    return type(
        "DataFrame", (), {"__module__": "pandas.core.frame", "__iter__": lambda self: None}
    )()


LOADER = DataLoader(TensorDataset(torch.ones(8, 3), torch.zeros(8)), batch_size=4)


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "there are no batches in it"),
        (torch.ones(64, 3), "give x.split(32)"),
        ({"x": X}, "a dict is one batch: give [batch]"),
        (UserDict(x=X), "is one batch"),
        (TensorDataset(X), "a TensorDataset gives single samples: give DataLoader"),
        ("calibration.txt", "is a text (str)"),
        (np.ones((4, 3)), "is a numpy ndarray: give torch.from_numpy(it), in batches"),
        (frame(), "is a table (DataFrame)"),
        (lambda: [X], "call it"),
        (list, "call it"),
        (None, "NoneType is no iterable of batches: give a list"),
        (3, "int is no iterable"),
        (nn.Sequential(nn.ReLU()), "Sequential is no iterable"),
        ([X, "a text"], "batch 1 is a text (str): give the tensors that the tokenizer makes"),
        ([["a", "b"]], "batch 0 holds 'input 0', which is a text"),
        ([X, X, frame()], "batch 2 is a table"),
        ([X.numpy()], "batch 0 is a numpy ndarray"),
        ([{"x": X.numpy()}], "batch 0 holds 'x', which is a numpy ndarray"),
        ([{"input_ids": [[1, 2], [3, 4]]}], 'return_tensors="pt"'),
        ([1, 2], "batch 0 holds no tensor (int)"),
        ([None], "batch 0 holds no tensor (NoneType)"),
        ([()], "batch 0 is an empty tuple"),
        ([{}], "batch 0 is an empty dict"),
        ([X, X * math.nan], "batch 1 holds NaN, and so would every statistic"),
        ([(X, torch.complex(Y, Y * math.nan))], "batch 0 holds NaN in 'input 1'"),
        ([{"x": X.half() * math.nan}], "batch 0 holds NaN in 'x'"),
    ],
)
def test_checked_when_it_is_no_batch_then_the_error_says_which_and_what_to_give(batches, said):
    for read in (checked, held):
        with pytest.raises(ConfigError) as raised:
            list(read(batches))
        assert said in str(raised.value)
        assert str(raised.value).startswith("data: ")


@pytest.mark.parametrize(
    "batches",
    [
        [X],
        (X, X),
        X.split(1),
        LOADER,
        [{"x": X, "mode": "text", "n": np.float32(2)}],
        [Frozen(X)],
        [(X, ADDED)],  # a mask may hold infinite numbers
        [{"x": X.to_sparse()}],
        [{"x": torch.ones(0, 3)}],
        [X.to(torch.float8_e4m3fn)],
        [torch.nested.nested_tensor([X, X[:1]], layout=torch.jagged)],
    ],
)
def test_checked_when_they_are_batches_then_each_is_passed_on_as_it_is(batches):
    assert len(list(checked(batches))) == len(list(batches))
    if isinstance(batches, list):
        assert next(checked(batches)) is batches[0]


def test_checked_when_a_generator_is_used_up_then_that_is_said():
    batches = (each for each in [X])
    assert len(list(checked(batches))) == 1
    with pytest.raises(ConfigError, match="generator is used up: it can be read once only"):
        list(checked(batches))


def test_checked_when_there_are_many_then_it_reads_no_further_than_asked():
    def endless():
        while True:
            yield X

    found = checked(endless())
    assert next(found) is next(found) is X


def test_held_when_read_once_then_it_can_be_read_again_and_a_buffer_is_copied():
    buffer = torch.zeros(1, 3)

    def filled():
        for value in (1.0, 2.0):
            yield (buffer.fill_(value),)

    batches = held(filled())
    assert [batch[0].max().item() for batch in batches] == [1, 2]


def test_held_when_a_loader_shuffles_then_every_pass_sees_the_same():
    data = TensorDataset(torch.arange(64.0)[:, None])
    batches = held(DataLoader(data, batch_size=8, shuffle=True))
    assert [b[0].tolist() for b in batches] == [b[0].tolist() for b in batches]
    assert len({value for b in batches for value in b[0].flatten().tolist()}) == 64


def test_held_when_it_is_a_list_then_nothing_is_copied():
    batches = [X, Y]
    assert all(a is b for a, b in zip(held(batches), batches, strict=True))


@pytest.mark.parametrize(
    ("model", "batch", "said"),
    [
        (nn.Linear(4, 1), X, "data: batch 7, (2, 3): Linear refuses it: RuntimeError: mat1"),
        (nn.Embedding(3, 2), IDS + 9, "data: batch 7, (2, 3): Embedding refuses it: IndexError: "),
        (Sum(), {"z": X}, "data: batch 7, z (2, 3): Sum refuses it: TypeError: "),
        (Sum(), (X, Y[:, :2]), "where the rest are labels, pass (x for x, y in loader), or loss="),
        (
            OfOne(),
            (X, torch.zeros(2)),
            "data: batch 7, (2, 3), (2,): 2 inputs, and OfOne takes 1: where the rest are labels, "
            "pass (x for x, y in loader)",
        ),
    ],
)
def test_call_when_the_model_refuses_a_batch_then_it_is_named_with_the_reason(model, batch, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        call(model, batch, 7)


def test_call_when_memory_ends_then_that_error_is_left_as_it_is():
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError, match="no more"):
        call(Large(), X, 0)
