"""NNI 2.x's pruners that look at the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from secateur.errors import ConfigError
from secateur.types import Example

from .config_list import modern
from .pruner import OneShotPruner


class LevelPruner(OneShotPruner):
    """Removes single weights of the smallest magnitude.

    Args:
        model: any module, or None.
        config_list: NNI 2.x's configuration, or None.
        mode: "normal", or "balance": every block of a weight loses the same share (Cao et al. 2019,
            bank-balanced sparsity).
        balance_gran: sizes of the blocks along the last dimensions, for "balance"; each divides its
            dimension.
    """

    criterion = "magnitude"
    default_granularity = "element"
    modes = ("normal", "balance")

    def __init__(
        self,
        model: nn.Module | None,
        config_list: Sequence[Mapping[str, Any]] | None,
        mode: str = "normal",
        balance_gran: Sequence[int] | None = None,
    ):
        if (mode == "balance") != (balance_gran is not None):
            raise ConfigError("balance_gran=[…] goes with mode='balance', and the mode with it")
        if balance_gran is not None:
            _check_sizes(balance_gran)
        self.balance_gran = balance_gran
        super().__init__(model, config_list, mode=mode)

    def _modern(self, model: nn.Module) -> list[dict[str, Any]]:
        if self.balance_gran is None:
            return super()._modern(model)
        sizes = ",".join(str(size) for size in self.balance_gran)
        return modern(self.goals, model, granularity=f"balanced:{sizes}")


def _check_sizes(sizes: object) -> None:
    """Raise a ConfigError where ``balance_gran`` is no list of sizes."""
    several = isinstance(sizes, (list, tuple)) and len(sizes) > 0
    if not several or not all(type(n) is int and (n > 0 or n == -1) for n in sizes):  # type: ignore[attr-defined]
        raise ConfigError(
            f"balance_gran must be sizes of at least 1 such as [1, 16], got {sizes!r}"
        )


class _NormPruner(OneShotPruner):
    modes = ("normal", "dependency_aware")

    def __init__(
        self,
        model: nn.Module | None,
        config_list: Sequence[Mapping[str, Any]] | None,
        mode: str = "normal",
        dummy_input: Example = None,
    ):
        super().__init__(model, config_list, mode=mode, dummy_input=dummy_input)


class L1NormPruner(_NormPruner):
    """Removes output channels of the smallest L1 norm (Li et al. 2017, arXiv:1608.08710)."""

    criterion = "l1"


class L2NormPruner(_NormPruner):
    """Removes output channels of the smallest L2 norm."""

    criterion = "l2"


class FPGMPruner(_NormPruner):
    """Removes the channels nearest to the geometric median (He et al. 2019, arXiv:1811.00250)."""

    criterion = "fpgm"
