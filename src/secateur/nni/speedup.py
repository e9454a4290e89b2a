"""NNI's ``ModelSpeedup``: from masks to a model that is really smaller."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import ConfigError, MaskError
from secateur.masks import masking
from secateur.runtime.undo import Undo
from secateur.shrinking import Result, shrink
from secateur.types import Example

from .activations import values_masked
from .common.concrete_trace_utils import traced_with
from .dependencies import auto_set_dependency_group_ids
from .masks import broadcast, checked
from .targets import full_name, is_activation
from .utils.external.external_replacer import TransformersAttentionReplacer

log = logging.getLogger(__name__)

Masks = Mapping[str, Mapping[str, Tensor | None]]


class ModelSpeedup:
    """Cuts out of a model what masks have made superfluous; exact, or the result says so.

    Args:
        model: the model, with the masks still on or after ``unwrap_model``; it is changed in place.
        dummy_input: example inputs: a tensor, a tuple or a dict.
        masks_or_file: NNI's masks ``{module: {target: tensor}}``, or a file of them
            (``.safetensors`` with keys "module.target", or one that ``torch.save`` wrote, read with
            ``weights_only=True``).  They may be partial, and disagree across a residual.
        map_location: where a file's masks are loaded to.
        verify: compare the smaller with the masked model (not in NNI; on by default).
        constants: "fold" what removed channels still emit into the layers that read it, or "mask"
            it (not in NNI, which drops it unsaid); see ``secateur.shrink``.
        inexact: cut also positions that are masked wherever they are made, though a norm makes them
            anew (not in NNI, which always does); the result says how far the outputs go.
        data: batches of inputs, from which what stays makes up for what goes (not in NNI): the
            layers that read it are refitted to what the model computes without masks.
        repair: how; see ``secateur.shrink``.
        batch_dim, batch_size, customized_mask_updaters, customized_replacers, graph_module,
            garbage_collect_values, logger: accepted for NNI's signature, and not needed.

    ``result`` holds what was done, after ``speedup_model``; its ``warnings`` are logged, too.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Example,
        masks_or_file: Masks | str | os.PathLike[str],
        map_location: Any = None,
        batch_dim: int = 0,
        batch_size: int = 8,
        customized_mask_updaters: Any = None,
        customized_replacers: Any = None,
        graph_module: Any = None,
        garbage_collect_values: bool = True,
        logger: Any = None,
        *,
        verify: bool = True,
        constants: Literal["fold", "mask"] = "fold",
        inexact: bool = False,
        data: Iterable[Any] | None = None,
        repair: str = "least_squares",
    ):
        replacers = [
            r
            for r in customized_replacers or ()
            if not isinstance(r, TransformersAttentionReplacer)
        ]
        if customized_mask_updaters or replacers:
            warnings.warn(
                "customized_mask_updaters and customized_replacers are ignored: structure is "
                "inferred from the operations; for an operation of your own, register a rule",
                stacklevel=2,
            )
        self.model = model
        self.dummy_input = dummy_input
        if isinstance(masks_or_file, Mapping):
            self.masks: Masks = _by_module(masks_or_file)
        elif not isinstance(masks_or_file, (str, os.PathLike)):
            said = type(masks_or_file).__name__
            raise MaskError(f"masks are a dict of dicts, or a file of them, not a {said}")
        else:
            self.masks = load_masks(masks_or_file, map_location)
        self.verify = verify
        self.constants = constants
        self.inexact = inexact
        self.data = data
        self.repair = repair
        self.result: Result | None = None

    def speedup_model(self) -> nn.Module:
        """Cut the model in place and return it.

        Raises:
            MaskError: a mask fits no parameter of the model.
            TraceError: the forward failed on ``dummy_input``.
            ShrinkError, VerificationError: the model is as it was before.
        """
        on = masking.masks_on(self.model)
        parameters = _both(parameter_masks(self.masks, self.model), on)
        masking.take_off(self.model, bake=False)
        try:
            self.result = shrink(
                self.model,
                parameters,
                self.dummy_input,
                inplace=True,
                verify=self.verify,
                constants=self.constants,
                inexact=self.inexact,
                data=self.data,
                repair=self.repair,
            )
        except BaseException:
            masking.put_on(self.model, on)
            raise
        if still_on := values_masked(self.model):
            self.result.warnings.append(
                f"masks are still on {', '.join(still_on)}, and keep the channels there: call "
                "unwrap_model() before ModelSpeedup to cut those"
            )
        for warning in self.result.warnings:
            log.warning(warning)  # nobody prints the result here
        others = [full_name(m, t) for m, ts in self.masks.items() for t in ts if is_activation(t)]
        if others:
            self.result.notes.append(
                f"masks of inputs and outputs cut nothing: {', '.join(others)}"
            )
        return self.model

    def run(self) -> nn.Module:
        """Cut the model in place and return it; the same as ``speedup_model``."""
        return self.speedup_model()


def auto_set_denpendency_group_ids(
    graph_module: nn.Module,
    config_list: list[dict[str, Any]],
    prune_type: str = "Filter",
    prune_axis: int = 0,
    *,
    dummy_input: Example = None,
) -> list[dict[str, Any]]:
    """Return a config_list of one entry per module, in which tied modules share a group id.

    This is NNI's second function of that name; ``secateur.nni.utils`` has the first.

    Args:
        graph_module: what ``concrete_trace`` returned, or any module with a ``dummy_input``.
        config_list: as for a pruner.
        prune_type, prune_axis: "Filter" and 0, which are NNI's defaults.
        dummy_input: example inputs (not in NNI).

    Raises:
        ConfigError: there are no example inputs, or the config_list does not fit the model.
    """
    if (prune_type, prune_axis) != ("Filter", 0):
        raise ConfigError(
            f"prune_type={prune_type!r}, prune_axis={prune_axis!r}: only 'Filter' and 0, output "
            "channels, are known here"
        )
    example = traced_with(graph_module) if dummy_input is None else dummy_input
    if example is None:
        raise ConfigError(
            "there are no example inputs: give dummy_input=…, or what concrete_trace returned"
        )
    return auto_set_dependency_group_ids(graph_module, config_list, example)


def _both(given: dict[str, Tensor], on: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the product of the masks that were given and those that are on the model."""
    found = {**on, **given}
    for name, mask in on.items():
        if found[name].shape == mask.shape:  # else ``shrink`` says what is wrong with it
            found[name] = found[name].to(mask.device) & mask
    return found


def _by_module(masks: Mapping[str, Any]) -> Masks:
    """Return masks of modules, each by its targets' names; MaskError: they are in another form."""
    for name, found in masks.items():
        if not isinstance(found, Mapping):
            module, _, target = str(name).rpartition(".")
            right = f"{{{module!r}: {{{target!r}: …}}}}"
            raise MaskError(
                f"masks are {{module: {{target: tensor}}}}, and {name!r} has a "
                f"{type(found).__name__}: write {right}, or use secateur.shrink, which takes "
                "masks by parameters' names"
            )
    return masks


def parameter_masks(masks: Masks, model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of parameters by full name, as bool tensors of their shapes; True is kept.

    Raises:
        MaskError: a mask is no tensor, has values other than 0 and 1, or does not broadcast.
    """
    shapes = {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}
    found = {}
    for module, by_target in masks.items():
        for target, mask in by_target.items():
            if mask is None or is_activation(target):
                continue
            name = full_name(module, target)
            found[name] = checked(name, mask)
            if name in shapes:  # else ``shrink`` says which one may be meant
                found[name] = broadcast(name, found[name], shapes[name])
    return found


@contextmanager
def _only_dicts() -> Iterator[None]:
    """Let torch load dicts, and NNI's defaultdicts as dicts; no class that others call safe.

    Of two that are safe under one name torch takes either, and another library may have its own.
    """
    others = torch.serialization.get_safe_globals()
    with Undo() as undo:
        undo(partial(torch.serialization.add_safe_globals, others))
        undo(torch.serialization.clear_safe_globals)
        torch.serialization.clear_safe_globals()
        with torch.serialization.safe_globals([(_plain, "collections.defaultdict"), dict]):
            yield


def load_masks(file: str | os.PathLike[str], map_location: Any = None) -> Masks:
    """Return the masks of a file; see ``ModelSpeedup`` for the formats.

    Raises:
        MaskError: the file is damaged, or holds no masks in NNI's format.
        OSError: there is no such file.
    """
    path = Path(file)
    try:
        if path.suffix == ".safetensors" or _is_safetensors(path):
            return _nested(load_file(path, device=str(map_location or "cpu")))
        with _only_dicts():
            loaded = torch.load(path, map_location=map_location, weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise MaskError(
            f"{path} is no file of masks: it is damaged, or holds more than dicts of tensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, dict) for v in loaded.values()):
        raise MaskError(f"{path} holds no masks of the form {{module: {{target: tensor}}}}")
    return loaded


def _is_safetensors(path: Path) -> bool:
    """Tell by its content whether a file is one, whatever its name: a length, and then JSON."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _plain(factory: object = None) -> dict[str, Any]:
    return {}


def _nested(flat: Mapping[str, Tensor]) -> Masks:
    masks: dict[str, dict[str, Tensor | None]] = {}
    for name, mask in flat.items():
        module, _, target = name.rpartition(".")
        masks.setdefault(module, {})[target] = mask
    return masks
