"""Recurrent layers: traced in plain operations, and cut to ordinary layers of other sizes."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._pytree import tree_leaves

import secateur as sc
from secateur.replacements import in_plain_operations, name_of

LAYERS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")

SEED = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=SEED)


def tensors(out: Any) -> list[Tensor]:
    parts = out if isinstance(out, tuple) else (out,)
    return [
        t for p in parts for t in ([p.data] if isinstance(p, PackedSequence) else tree_leaves(p))
    ]


def same_results(layer: nn.Module, *inputs: Any) -> None:
    layer.eval()
    with torch.no_grad():
        expected = layer(*inputs)
        with in_plain_operations(layer):
            assert name_of(layer)
            found = layer(*inputs)
    assert name_of(layer) is None
    torch.testing.assert_close(tensors(found), tensors(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*LAYERS, "lstm projected"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_plain_when_nothing_is_cut_then_it_computes_what_torch_does(kind, bidirectional):
    options: dict[str, Any] = {"proj_size": 3} if "projected" in kind else {}
    make = LAYERS[kind.split()[0]]
    for layers, bias, batch_first in product([1, 2], [True, False], [True, False]):
        layer = make(
            4, 5, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional, **options
        )
        states = layers * (1 + bidirectional)
        hidden: Any = random(states, 3, options.get("proj_size", 5))
        hidden = (hidden, random(states, 3, 5)) if make is nn.LSTM else hidden
        x = random(3, 6, 4) if batch_first else random(6, 3, 4)
        packed = pack_sequence([random(n, 4) for n in (2, 6, 4)], enforce_sorted=False)
        for given in ((x,), (x, hidden), (packed,), (packed, hidden), (random(6, 4),)):
            same_results(layer, *given)


def test_plain_when_the_nonlinearity_is_relu_then_it_computes_what_torch_does():
    same_results(nn.RNN(4, 5, nonlinearity="relu"), random(6, 3, 4))
    same_results(nn.RNNCell(4, 5, nonlinearity="relu"), random(3, 4))


@pytest.mark.parametrize("kind", CELLS)
def test_plain_when_it_is_a_cell_then_it_computes_what_torch_does(kind):
    cell = CELLS[kind](4, 5)
    hidden = (random(3, 5), random(3, 5)) if kind == "lstm" else random(3, 5)
    for given in ((random(3, 4),), (random(3, 4), hidden), (random(4),)):
        same_results(cell, *given)


class Tagger(nn.Module):
    """Embeds, reads, and uses each step or the last state."""

    def __init__(self, layer: type[nn.Module], *, last: bool = False, packs: bool = False, **opts):
        super().__init__()
        self.last, self.packs = last, packs
        self.embed = nn.Linear(6, 8)
        self.read = layer(8, 12, batch_first=True, **opts)
        width = opts.get("proj_size", 12) * (2 if opts.get("bidirectional") else 1)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        if self.packs:
            packed = nn.utils.rnn.pack_padded_sequence(
                x, torch.tensor([2, 5, 3]), batch_first=True, enforce_sorted=False
            )
            state = self.read(packed)[1]
            return self.out((state[0] if isinstance(state, tuple) else state)[-1])
        steps, state = self.read(x)
        if not self.last:
            return self.out(steps)
        hidden = state[0] if isinstance(state, tuple) else state
        return self.out(hidden[-2:].transpose(0, 1).flatten(1))


CASES = {
    **{kind: (layer, {}) for kind, layer in LAYERS.items()},
    **{f"{kind}, both ways, stacked": (layer, {"bidirectional": True, "num_layers": 2})
       for kind, layer in LAYERS.items()},
    "lstm, projected": (nn.LSTM, {"proj_size": 10}),
    "gru, last state": (nn.GRU, {"last": True, "bidirectional": True}),
    "lstm, last state": (nn.LSTM, {"last": True, "bidirectional": True, "num_layers": 2}),
    "lstm, packed": (nn.LSTM, {"packs": True, "num_layers": 2}),
    "gru, packed": (nn.GRU, {"packs": True}),
    "rnn, no bias": (nn.RNN, {"bias": False}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_cut_when_the_layer_is_recurrent_then_masked_equals_cut(case, tmp_path):
    layer, options = CASES[case]
    torch.manual_seed(0)
    model, example = Tagger(layer, **options), random(3, 5, 6)
    result = sc.prune(model, example, sparsity=0.5)
    assert result.verification.passed
    assert result.verification.difference < 1e-5
    assert type(result.model.read) is layer
    assert (result.model.read.input_size, result.model.read.hidden_size) == (4, 6)
    assert result.after.params == sum(p.numel() for p in result.model.parameters())
    with torch.device("meta"):
        fresh = Tagger(layer, **options)
    loaded = sc.load_pruned(result.save(tmp_path), fresh)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(example), result.model.eval()(example))


class Loop(nn.Module):
    """A cell stepped by the model's own loop."""

    def __init__(self, cell: type[nn.Module]):
        super().__init__()
        self.embed, self.cell, self.out = nn.Linear(6, 8), cell(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in torch.relu(self.embed(x)).unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", CELLS)
def test_cut_when_a_cell_runs_in_a_loop_then_masked_equals_cut(kind):
    torch.manual_seed(0)
    result = sc.prune(Loop(CELLS[kind]), random(3, 5, 6), sparsity=0.5)
    assert result.verification.passed
    assert (result.model.cell.input_size, result.model.cell.hidden_size) == (4, 6)


def test_cut_when_the_state_is_an_input_then_the_layer_keeps_its_width():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.out = nn.GRU(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor, state: Tensor) -> Tensor:
            return self.out(self.read(x, state)[0])

    structure = sc.analyze(Stateful(), (random(5, 3, 6), random(1, 3, 12)))
    assert structure.groups == ()
    assert "input" in structure.explain("read.weight_hh_l0", 1)


def test_cut_when_pruned_twice_and_trained_then_it_is_an_ordinary_layer():
    model, example = Tagger(nn.LSTM), random(3, 5, 6)
    small = sc.prune(sc.prune(model, example, sparsity=0.5).model, example, sparsity=0.5).model
    assert small.read.hidden_size == 3
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small.train()(example).sum().backward()
    optimizer.step()


class OwnForward(nn.GRU):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return super().forward(input + 1, hx)


def test_cut_when_a_subclass_has_more_in_its_forward_then_masked_equals_cut():
    same_results(OwnForward(4, 5), random(6, 3, 4))
    result = sc.prune(Tagger(OwnForward), random(3, 5, 6), sparsity=0.5)
    assert result.verification.passed
    assert type(result.model.read) is OwnForward
    assert result.model.read.hidden_size == 6


def test_plain_when_weights_are_parametrized_then_the_layer_is_still_traced():
    layer = nn.utils.parametrizations.weight_norm(nn.GRUCell(4, 5), "weight_hh")
    kind = type(layer)
    same_results(layer, random(3, 4))
    assert type(layer) is kind
