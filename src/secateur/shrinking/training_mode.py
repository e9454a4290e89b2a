"""Does the smaller model run in training mode?  Noise, masks and losses there have sizes too.

The operations of that mode are not typed, but where the dense model runs in it on the example, the
smaller one must too: what does not is found before somebody's first epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.errors import ShrinkError
from secateur.runtime.forward import in_training_mode, undisturbed
from secateur.runtime.quiet import quiet
from secateur.types import Example, call_arguments

from .verify import said


class TrainingMode:
    """Runs a model in training mode, if it ran there before anything was cut.

    Args:
        model: the dense one.
        example: on which it may not run: batch norms need more than one value of each channel, and
            some models targets.

    >>> class Noisy(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up, self.width = nn.Linear(4, 8), 8
    ...     def forward(self, x):
    ...         noise = torch.randn(len(x), self.width) if self.training else 0.0
    ...         return self.up(x) + noise
    >>> net, x = Noisy(), torch.zeros(2, 4)
    >>> mode = TrainingMode(net, x)
    >>> mode.check(net)
    >>> net.up = nn.Linear(4, 5)
    >>> mode.check(net)
    Traceback (most recent call last):
        ...
    secateur.errors.ShrinkError: the smaller Noisy does not run in training mode: RuntimeError: ...
    """

    def __init__(self, model: nn.Module, example: Example):
        self.example = example
        self.runs = self._error(model) is None

    def check(self, model: nn.Module) -> None:
        """Run a smaller model.

        Raises:
            ShrinkError: it does not run, and the dense one did.
        """
        error = self._error(model) if self.runs else None
        if error is not None:
            name = type(model).__name__
            raise ShrinkError(
                f"the smaller {name} does not run in training mode: {said(error)}"
            ) from error

    def _error(self, model: nn.Module) -> Exception | None:
        """Return what the model's code raises, if it does."""
        args, kwargs = call_arguments(tree_map(_own, self.example))
        with quiet(), undisturbed(model) as apart, in_training_mode(model), torch.no_grad():
            apart.writes.drawing.seed(0)
            try:
                model(*args, **kwargs)
            except Exception as error:  # the user's forward may raise anything
                return error
        return None


def _own(x: object) -> object:
    """Return a tensor that a forward may write to."""
    return x.detach().clone() if isinstance(x, Tensor) else x
