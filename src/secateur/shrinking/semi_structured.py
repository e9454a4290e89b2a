"""Layers whose weights are 2:4 on the kernels of core torch for them, where these are faster.

Two of four consecutive weights of each row are zero, and a CUDA device of compute capability 8.0 on
skips them; whether that is faster depends on the layer, the inputs' rows and the device, so each
layer is timed.  Mishra et al., 2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from secateur.errors import ConfigError, FileError, MaskError, UnknownNameError, did_you_mean
from secateur.masks import masking
from secateur.runtime.forward import evaluating, undisturbed
from secateur.runtime.io import whole
from secateur.runtime.measure import Latency, latency
from secateur.runtime.undo import Undo, unhook_module
from secateur.types import Example, call_arguments

from .exports import SEMI_STRUCTURED

CLOSE = 2e-2
"""Outputs may differ by this much of the largest: half precision, summed in another order."""
MOST_FILE = 2**24


@dataclass(frozen=True)
class SparseLayer:
    """One linear layer with a 2:4 weight, and what the sparse kernel made of it.

    Attributes:
        name: of the layer.
        shape: (out, in) of its weight.
        rows: of the inputs that it was timed on; 0 is not timed.
        dense: milliseconds of one call with the dense kernel.
        sparse: the same with the sparse one.
        converted: it computes with the sparse kernel now.
        why: it does not, or "".
    """

    name: str
    shape: tuple[int, int]
    rows: int = 0
    dense: float | None = None
    sparse: float | None = None
    converted: bool = False
    why: str = ""

    def __str__(self) -> str:
        timed = ""
        if self.dense is not None and self.sparse is not None:
            timed = f", {self.dense:.3g} → {self.sparse:.3g} ms on {self.rows} rows"
        said = "sparse" if self.converted else f"dense ({self.why})"
        return f"{self.name} {self.shape[0]} × {self.shape[1]}: {said}{timed}"


def is_semi_structured(weight: Tensor) -> bool:
    """Tell whether at most two of each four consecutive weights of a row are not zero.

    >>> is_semi_structured(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
    True
    >>> is_semi_structured(torch.tensor([[1.0, 3.0, 2.0, 0.0]]))
    False
    """
    if weight.ndim != 2 or weight.shape[1] % 4 or not weight.numel():
        return False
    return bool(((weight != 0).view(len(weight), -1, 4).sum(-1) <= 2).all())


def semi_structured(
    model: nn.Module,
    example: Example = None,
    *,
    layers: Sequence[str] | str | os.PathLike[str] | None = None,
) -> list[SparseLayer]:
    """Let linear layers with 2:4 weights compute with torch's sparse kernels, in place.

    A layer is converted where its outputs stay what they are and it gets faster on the inputs that
    the example gives it; all others stay as they are.  Converted layers are for inference.

    Args:
        model: on a CUDA device of compute capability 8.0 on, without masks on (``finish`` first).
        example: a tensor, a tuple of positional or a dict of keyword arguments, as many rows as in
            production: what is faster with many may be slower with few.
        layers: those to convert without timing them: names, or a folder or file that
            ``secateur export --semi-structured`` wrote.

    Returns:
        Each linear layer with a 2:4 weight: its times, and why it stays dense if it does.

    Raises:
        ConfigError: there is neither an example nor layers, or the model is on no such device.
        MaskError: masks are on, or a layer that is named has no 2:4 weight.
        UnknownNameError, FileError: a layer, or the file, is not there or is none of this kind.

    >>> net = nn.Sequential(nn.Linear(64, 64))
    >>> semi_structured(net, torch.zeros(1, 64))
    Traceback (most recent call last):
        ...
    secateur.errors.ConfigError: the sparse kernels run on CUDA devices; '0.weight' is on cpu: ...
    """
    if masking.is_masked(model):
        raise MaskError("masks are on: finish() the pruner they belong to, then convert its model")
    if example is None and layers is None:
        raise ConfigError("say on what layers are timed (example), or which to convert (layers)")
    _check_device(model)
    if layers is not None:
        return _named(model, _names(layers))
    found = {n: m for n, m in _linear(model).items() if is_semi_structured(m.weight)}
    rows = _rows(model, found, example)
    with Undo(lasting=True) as undo:
        return [_timed(name, module, rows[name], undo) for name, module in found.items()]


def _check_device(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_cuda:
            raise ConfigError(
                f"the sparse kernels run on CUDA devices; {name!r} is on {parameter.device}: move "
                "the model there first, in half precision: model.half().cuda()"
            )


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that hold a weight of their own, by their names."""
    every = model.named_modules()
    return {n: m for n, m in every if isinstance(m, nn.Linear) and "weight" in m._parameters}


def _named(model: nn.Module, names: Sequence[str]) -> list[SparseLayer]:
    """Convert layers that somebody names; all of them, or none."""
    known = _linear(model)
    for name in names:
        if name not in known:
            raise UnknownNameError(
                f"no linear layer is called {name!r}.{did_you_mean(name, known)}"
            )
        if not is_semi_structured(known[name].weight):
            raise MaskError(f"{name}.weight is not 2:4: more than two of four weights are not zero")
    found = []
    with Undo(lasting=True) as undo:
        for name in names:
            module = known[name]
            shape = _shape(module)
            try:
                _put(module, _converted(module.weight), undo)
            except RuntimeError as error:  # torch has no kernel for such a type or shape
                found.append(SparseLayer(name, shape, why=_first_line(error)))
            else:
                found.append(SparseLayer(name, shape, converted=True))
    return found


def _timed(name: str, layer: nn.Linear, rows: int, undo: Undo) -> SparseLayer:
    """Convert one layer where that is right and faster."""
    shape = _shape(layer)
    if not rows:
        return SparseLayer(name, shape, why="the example does not reach it")
    x = torch.randn(rows, shape[1], device=layer.weight.device, dtype=layer.weight.dtype)
    try:
        twin = _twin(layer)
        with torch.inference_mode():
            dense, sparse = layer(x), twin(x)
    except RuntimeError as error:  # as above
        return SparseLayer(name, shape, rows, why=_first_line(error))
    gap = float((dense - sparse).abs().max() / dense.abs().max().clamp(min=1e-12))
    if not gap <= CLOSE:
        return SparseLayer(name, shape, rows, why=f"outputs differ by {gap:.1e}")
    times = latency({"dense": layer, "sparse": twin}, x)
    found = partial(SparseLayer, name, shape, rows, times["dense"].median, times["sparse"].median)
    if not _faster(times["sparse"], times["dense"]):
        return found(why="it is not faster")
    _put(layer, twin.weight, undo)
    return found(converted=True)


def _faster(sparse: Latency, dense: Latency) -> bool:
    """Tell whether one is faster beyond the spread of both."""
    return sparse.high < dense.low


def _twin(layer: nn.Linear) -> nn.Linear:
    """Return a layer with the same bias and a sparse weight."""
    twin = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    twin.bias = layer.bias
    twin.weight = _converted(layer.weight)
    return twin


def _converted(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(to_sparse_semi_structured(weight.detach()), requires_grad=False)


def _put(layer: nn.Linear, weight: Tensor, undo: Undo) -> None:
    undo(partial(setattr, layer, "weight", layer.weight))
    layer.weight = weight


def _shape(layer: nn.Linear) -> tuple[int, int]:
    out, features = layer.weight.shape
    return int(out), int(features)


def _rows(model: nn.Module, layers: Mapping[str, nn.Linear], example: Example) -> dict[str, int]:
    """Return the most rows that a call of each layer gets of the example."""
    found = dict.fromkeys(layers, 0)
    args, kwargs = call_arguments(example)
    with undisturbed(model), evaluating(model), torch.no_grad(), _counting(layers, found):
        model(*args, **kwargs)
    return found


@contextmanager
def _counting(layers: Mapping[str, nn.Linear], found: dict[str, int]) -> Iterator[None]:
    with Undo() as undo:
        for name, layer in layers.items():

            def count(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                found[name] = max(found[name], args[0].numel() // args[0].shape[-1])

            undo(partial(unhook_module, layer, count))
            layer.register_forward_pre_hook(count)
        yield


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160]


# the file


def write_layers(found: Sequence[SparseLayer], path: Path) -> None:
    """Write which layers were converted, their times, and on what."""
    facts = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
        "layers": [asdict(layer) for layer in found],
    }
    with whole(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _names(layers: Sequence[str] | str | os.PathLike[str]) -> list[str]:
    """Return names, as they are given or as a file holds them."""
    if not isinstance(layers, (str, os.PathLike)):
        return list(layers)
    path = Path(layers)
    path = path / SEMI_STRUCTURED if path.is_dir() else path
    try:
        if path.stat().st_size > MOST_FILE:
            raise ValueError("it is too large")
        held = json.loads(path.read_text(encoding="utf-8"))
        return [str(each["name"]) for each in held["layers"] if each["converted"] is True]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{path} names no semi-structured layers: {error}") from error
