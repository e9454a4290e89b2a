"""Weights that come and go: of a model on ``meta``, what one part of it needs for now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from secateur.runtime.copying import copied
from secateur.runtime.undo import Undo

from .alone import Alone
from .chain import Chain
from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Weights:
    """A model without numbers, and the checkpoint that has them.

    Attributes:
        model: on ``meta``.
        checkpoint: of it.
        names: of its tensors → the checkpoint's.
    """

    model: nn.Module
    checkpoint: Checkpoint
    names: Mapping[str, str]

    @contextmanager
    def held(self, names: Sequence[str]) -> Iterator[None]:
        """Let some parameters have their numbers for that long, wherever they are tied."""
        read = self.checkpoint.read([self.names[name] for name in names])
        parameters = dict(self.model.named_parameters())
        new = {
            id(parameters[name]): nn.Parameter(
                read[self.names[name]].to(parameters[name].dtype), requires_grad=False
            )
            for name in names
        }
        with Undo() as undo:
            for module in self.model.modules():
                for name, held in list(module._parameters.items()):
                    if id(held) in new:
                        undo(partial(module._parameters.__setitem__, name, held))
                        module._parameters[name] = new[id(held)]
            yield

    def block(self, path: str, chain: Chain, device: torch.device | str = "cpu") -> Alone:
        """Return a copy of a block with its weights, as a model of its own."""
        block = copied(self.model.get_submodule(path))
        state = block.state_dict()
        read = self.checkpoint.read([self.names[f"{path}.{name}"] for name in state])
        loaded = {
            name: read[self.names[f"{path}.{name}"]].to(tensor.dtype)
            for name, tensor in state.items()
        }
        block.load_state_dict(loaded, assign=True)
        return Alone(block, path, chain, self.model).eval().to(device)
