"""``nn.RNN``, ``nn.LSTM``, ``nn.GRU`` and their cells, one plain operation after the other.

They are traced in this form only; what is left of them after a cut is an ordinary ``nn.LSTM`` with
other sizes.  A layer's gates lie one after the other in the rows of its weights: (gates hidden).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .table import replaces

GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}

State = tuple[Tensor, ...]  # (hidden,), or (hidden, cell) of an LSTM


def step(mode: str, x: Tensor, hidden: Tensor, state: State) -> State:
    """Return the next state.

    Args:
        mode: a key of ``GATES``.
        x: (batch, gates, hidden), what the input adds to the gates.
        hidden: (batch, gates, hidden), what the last hidden state adds to them.
        state: the last one; of an LSTM only its cell is read.
    """
    if mode == "LSTM":
        i, f, g, o = (x + hidden).unbind(1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        (r, z, n), (r_h, z_h, n_h) = x.unbind(1), hidden.unbind(1)
        n = (n + (r + r_h).sigmoid() * n_h).tanh()
        return (n + (z + z_h).sigmoid() * (state[0] - n),)
    total = (x + hidden).squeeze(1)
    return (total.tanh() if mode == "RNN_TANH" else total.relu(),)


class _Traced:
    """What all of them share: nothing besides the original's attributes, and it always fits."""

    @staticmethod
    def extra(module: nn.Module) -> dict[str, Any]:
        return {}

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return True


class _Layers(_Traced):
    """The forward of ``nn.RNNBase``."""

    def forward(self: Any, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        packed = input if isinstance(input, PackedSequence) else None
        x, batched = self._steps_first(input)
        given = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
        given = tuple(h if batched else h.unsqueeze(1) for h in given)
        if packed is not None and packed.sorted_indices is not None:
            given = tuple(h.index_select(1, packed.sorted_indices) for h in given)
        initial = list(zip(*(h.unbind(0) for h in given), strict=True))
        last: list[State] = []
        for layer in range(self.num_layers):
            sides = []
            for direction in range(2 if self.bidirectional else 1):
                start = initial[len(last)] if initial else None
                outputs, state = self._run(layer, direction, x, start, packed)
                sides.append(torch.stack(outputs) if packed is None else torch.cat(outputs))
                last.append(state)
            x = torch.cat(sides, -1) if len(sides) > 1 else sides[0]
            if self.training and self.dropout and layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout)
        states = tuple(torch.stack(column) for column in zip(*last, strict=True))
        if packed is not None and packed.unsorted_indices is not None:
            states = tuple(s.index_select(1, packed.unsorted_indices) for s in states)
        if not batched:
            states = tuple(s.squeeze(1) for s in states)
        out = self._as_given(x, packed, batched)
        return out, states if len(states) > 1 else states[0]

    def _steps_first(self: Any, input: Tensor | PackedSequence) -> tuple[Tensor, bool]:
        """Return (steps, batch, width), or (rows, width) of packed ones, and if it was a batch."""
        x = input.data if isinstance(input, PackedSequence) else input
        batched = isinstance(input, PackedSequence) or x.dim() == 3
        x = x.reshape(*x.shape[:-1], self.input_size)
        if not batched:
            return x.unsqueeze(1), False
        return x.transpose(0, 1) if self.batch_first and x.dim() == 3 else x, True

    def _as_given(self: Any, x: Tensor, packed: PackedSequence | None, batched: bool) -> Any:
        if packed is not None:
            indices = packed.sorted_indices, packed.unsorted_indices
            return PackedSequence(x, packed.batch_sizes, *indices)
        if not batched:
            return x.squeeze(1)
        return x.transpose(0, 1) if self.batch_first else x

    def _run(
        self: Any,
        layer: int,
        direction: int,
        x: Tensor,
        start: State | None,
        packed: PackedSequence | None,
    ) -> tuple[list[Tensor], State]:
        """Return each step's output and the last state of one layer in one direction."""
        name = f"l{layer}{'_reverse' if direction else ''}"

        def held(kind: str) -> Any:
            return getattr(self, f"{kind}_{name}", None)

        def gates(x: Tensor, kind: str) -> Tensor:
            rows = F.linear(x, held(f"weight_{kind}"), held(f"bias_{kind}"))
            return rows.view(*rows.shape[:-1], GATES[self.mode], self.hidden_size)

        given = _cut(gates(x, "ih"), packed)
        if start is None:
            first = max(given, key=len)
            nothing = torch.zeros_like(first.select(1, 0))
            start = (nothing, nothing) if self.mode == "LSTM" else (nothing,)
            if self.proj_size:
                start = (self._projected(nothing, held("weight_hr")), nothing)
        state = tuple(s[: len(given[-1])] for s in start) if direction else start
        outputs: list[Tensor] = []
        finished: list[State] = []
        for rows in reversed(given) if direction else given:
            now, size = len(state[0]), len(rows)
            if size > now:  # backwards: longer sequences begin
                more = (s[now:size] for s in start)
                state = tuple(torch.cat([old, new]) for old, new in zip(state, more, strict=True))
            elif size < now:  # forwards: shorter sequences are over
                finished.append(tuple(s[size:] for s in state))
                state = tuple(s[:size] for s in state)
            state = step(self.mode, rows, gates(state[0], "hh"), state)
            if self.proj_size:
                state = (self._projected(state[0], held("weight_hr")), state[1])
            outputs.append(state[0])
        for over in reversed(finished):
            state = tuple(torch.cat(pair) for pair in zip(state, over, strict=True))
        return outputs[::-1] if direction else outputs, state

    def _projected(self: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden, weight).view(-1, self.proj_size)


def _cut(x: Tensor, packed: PackedSequence | None) -> Sequence[Tensor]:
    """Return the rows of each step; of packed sequences, of those that last so long."""
    if packed is None:
        return x.unbind(0)
    steps, first = [], 0
    for size in packed.batch_sizes.tolist():
        steps.append(x.index_select(0, torch.arange(first, first + size, device=x.device)))
        first += size
    return steps


@replaces(nn.RNN)
class PlainRNN(_Layers, nn.RNN):
    """``nn.RNN`` in plain operations."""


@replaces(nn.LSTM)
class PlainLSTM(_Layers, nn.LSTM):
    """``nn.LSTM`` in plain operations."""


@replaces(nn.GRU)
class PlainGRU(_Layers, nn.GRU):
    """``nn.GRU`` in plain operations."""


class _Cell(_Traced):
    """The forward of ``nn.RNNCellBase``."""

    def forward(self: Any, input: Tensor, hx: Any = None) -> Any:
        mode = self._mode()
        batched = input.dim() == 2
        x = input if batched else input.unsqueeze(0)
        given = self._gates(x.reshape(x.size(0), self.input_size), "ih")
        if hx is None:
            nothing = torch.zeros_like(given.select(1, 0))
            state: State = (nothing, nothing) if mode == "LSTM" else (nothing,)
        else:
            state = hx if isinstance(hx, tuple) else (hx,)
            state = state if batched else tuple(s.unsqueeze(0) for s in state)
        state = step(mode, given, self._gates(state[0], "hh"), state)
        state = state if batched else tuple(s.squeeze(0) for s in state)
        return state if len(state) > 1 else state[0]

    def _mode(self: Any) -> str:
        return f"RNN_{self.nonlinearity.upper()}" if isinstance(self, nn.RNNCell) else self.KIND

    def _gates(self: Any, x: Tensor, kind: str) -> Tensor:
        rows = F.linear(x, getattr(self, f"weight_{kind}"), getattr(self, f"bias_{kind}"))
        return rows.view(-1, GATES[self._mode()], self.hidden_size)


@replaces(nn.RNNCell)
class PlainRNNCell(_Cell, nn.RNNCell):
    """``nn.RNNCell`` in plain operations."""


@replaces(nn.LSTMCell)
class PlainLSTMCell(_Cell, nn.LSTMCell):
    """``nn.LSTMCell`` in plain operations."""

    KIND = "LSTM"


@replaces(nn.GRUCell)
class PlainGRUCell(_Cell, nn.GRUCell):
    """``nn.GRUCell`` in plain operations."""

    KIND = "GRU"
