"""What a model is and where it stands when it is pruned: its type, mode, layout, gradients."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .draw import Draw
from .program import Program


class Surroundings:
    """Drawn from a program's seed; most are the usual ones."""

    def __init__(self, program: Program):
        d = Draw(f"around {program.seed}")
        usual = d.chance(0.6)
        self.dtype = torch.float32 if usual else d.pick(torch.float64, torch.bfloat16)
        self.training = not usual and d.chance(0.3)
        self.frozen = not usual and d.chance(0.2)
        self.learned = not usual and d.chance(0.3)
        self.last = not usual and program.stages[0][0] == "image" and d.chance(0.5)
        self.how = "usual" if usual else d.pick("usual", "no_grad", "inference")

    @property
    def exact(self) -> bool:
        """Whether weights are told apart by their values."""
        return self.dtype != torch.bfloat16

    def inputs(self, program: Program, size: int = 0) -> tuple[Tensor, ...]:
        given = program.inputs(size)
        return tuple(a.to(self.dtype) if a.is_floating_point() else a for a in given)

    def model(self, program: Program) -> nn.Module:
        """Return the dense model; in float32, where its code runs in no other type."""
        model = program.model().to(self.dtype)
        try:
            with torch.no_grad():
                copy.deepcopy(model)(*self.inputs(program))
        except (RuntimeError, NotImplementedError):
            self.dtype = torch.float32
            model = program.model()
        for p in model.parameters():
            if self.last and p.ndim == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
        return model

    def subject(self, dense: nn.Module, example: tuple[Tensor, ...]) -> nn.Module:
        """Return a copy to prune, as a user might have it."""
        model = copy.deepcopy(dense).train(self.training)
        if self.learned:
            for p in model.parameters():
                p.grad = torch.ones_like(p)
        if self.frozen:
            model.requires_grad_(False)
        return model

    def context(self) -> AbstractContextManager[Any]:
        contexts = {"no_grad": torch.no_grad, "inference": torch.inference_mode}
        return contexts.get(self.how, nullcontext)()
