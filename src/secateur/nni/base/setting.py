"""What NNI knows of each module class, at its path: ``PruningSetting.register``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from secateur.nni.absent import refuse
from secateur.nni.config_list import parse
from secateur.nni.targets import register_module, settings_by_target

__all__ = [
    "DistillatoinSetting",
    "INPUT_PREFIX",
    "OUTPUT_PREFIX",
    "PruningSetting",
    "QuantizationSetting",
    "canonicalize_settings",
]

INPUT_PREFIX = "_input_"
OUTPUT_PREFIX = "_output_"


class PruningSetting:
    """The targets that a module class has by default, each with its settings.

    >>> PruningSetting.register("Gain", {"gain": {"granularity": "element", "sparse_ratio": None}})
    >>> PruningSetting.get("Gain", {"sparse_ratio": 0.5})
    {'gain': {'granularity': 'element', 'sparse_ratio': 0.5}}
    """

    @staticmethod
    def register(module_cls__name: str, setting: Mapping[str, Any] | Iterable[str]) -> None:
        """Make a module class known; the same as ``secateur.nni.config_list.register_module``."""
        register_module(module_cls__name, setting)

    @staticmethod
    def get(
        module_cls_or_name: nn.Module | type[nn.Module] | str, config: Mapping[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return the settings of each target that an entry without selectors comes to.

        Raises:
            ConfigError: a key is wrong, or the class has no known targets.
        """
        (entry,) = parse([{**config, "op_types": ["any"]}])
        return settings_by_target(entry, module_cls_or_name)


class QuantizationSetting:
    """NNI's settings of quantisers: each call raises NotHereError."""

    @staticmethod
    def register(*args: Any) -> None:
        """Raise the error that says what to do instead."""
        refuse("quantization.QuantizationSetting")

    get = register


class DistillatoinSetting:  # NNI's spelling
    """NNI's settings of distillers: each call raises NotHereError."""

    @staticmethod
    def register(*args: Any) -> None:
        """Raise the error that says what to do instead."""
        refuse("distillation.DistillationSetting")

    get = register


def canonicalize_settings(
    module: nn.Module | type[nn.Module] | str, config: Mapping[str, Any], mode: str = "pruning"
) -> dict[str, dict[str, Any]]:
    """Return the settings of each target; ``mode`` is "pruning", the others are not here.

    Raises:
        ConfigError: as ``PruningSetting.get``.
        NotHereError: another mode.
    """
    if mode == "quantization":
        QuantizationSetting.get(module, config)
    if mode == "distillation":
        DistillatoinSetting.get(module, config)
    return PruningSetting.get(module, config)
