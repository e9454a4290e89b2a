"""``secateur export``: ONNX, an ExportedProgram, or 2:4 layers, checked by running them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from os.path import isdir  # which takes any text
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.errors import ConfigError, MissingExtraError, ShrinkError
from secateur.graph.outputs import tensors_of
from secateur.runtime.forward import evaluating
from secateur.runtime.io import whole
from secateur.runtime.progress import during
from secateur.shrinking.difference import difference
from secateur.shrinking.exports import ONNX, PT2, SEMI_STRUCTURED
from secateur.shrinking.semi_structured import semi_structured as sparse_layers
from secateur.shrinking.semi_structured import write_layers
from secateur.types import Example, call_arguments

from .models import load
from .options import NOTHING, Given
from .outcome import check_place
from .show import AsJson, show

CLOSE = 1e-3
"""The exported model may differ by this much of the largest output; runtimes fuse and reorder."""


def export(
    model: str,
    /,
    *,
    onnx: Annotated[bool, Parameter(negative=())] = False,
    torch_export: Annotated[bool, Parameter(negative=())] = False,
    semi_structured: Annotated[bool, Parameter(negative=())] = False,
    dynamic_batch: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    given: Given = NOTHING,
    as_json: AsJson = False,
) -> None:
    """Export a model and check the file: it must compute what the model does.

    Parameters
    ----------
    model
        A folder that secateur prune wrote, or any other MODEL.
    onnx
        Write model.onnx, and run it with onnxruntime where that is installed.
    torch_export
        Write model.pt2, which torch.export.load reads.
    semi_structured
        Time each linear layer whose weight is 2:4 on torch's sparse kernels, and write the names of
        those that get faster to semi_structured.json, which secateur.semi_structured takes. Needs a
        CUDA device; in half precision.
    dynamic_batch
        Let the first dimension of every input vary; checked with twice as many.
    out
        The folder for the files; by default that of the model, else the current one.
    """
    _check(onnx or torch_export or semi_structured, on_device=semi_structured)
    folder = out or (Path(model) if isdir(model) else Path())
    check_place(folder)
    loaded = load(model, given)
    example = _doubled(loaded.example) if dynamic_batch else loaded.example  # 1 is never dynamic
    shapes = _first_varies(example) if dynamic_batch else None
    written = {}
    with during("exporting"):
        if torch_export:
            written["torch_export"] = _torch_export(loaded.model, example, shapes, folder)
        if onnx:
            written["onnx"] = _onnx(loaded.model, example, shapes, folder)
        if semi_structured:  # last: it moves the model
            written["semi_structured"] = _semi_structured(loaded.model, loaded.example, folder)
    lines = "\n".join(
        f"{each['file']}: {each['bytes']:,} bytes, {each['checked']}" for each in written.values()
    )
    show(lines, written, as_json=as_json)


def _check(anything: bool, *, on_device: bool) -> None:
    if not anything:
        raise ConfigError("say what to write: --onnx, --torch-export or --semi-structured")
    if on_device and not torch.cuda.is_available():
        raise ConfigError("--semi-structured times layers on a CUDA device, and there is none here")


def _doubled(example: Example) -> Example:
    return tree_map(lambda x: torch.cat([x, x]) if isinstance(x, Tensor) else x, example)


def _first_varies(example: Example) -> Any:
    """Return torch.export's description of inputs whose first dimension may vary."""
    args, kwargs = call_arguments(example)
    return tree_map(
        lambda x: {0: torch.export.Dim.AUTO} if isinstance(x, Tensor) else None, kwargs or args
    )


def _torch_export(model: nn.Module, example: Example, shapes: Any, folder: Path) -> dict[str, Any]:
    args, kwargs = call_arguments(example)
    path = folder / PT2
    with evaluating(model), torch.no_grad():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        packed = io.BytesIO()  # a temporary file's name does not end in .pt2, which it insists on
        torch.export.save(program, packed)
        with whole(path) as temporary:
            temporary.write_bytes(packed.getvalue())
        args, kwargs = call_arguments(_doubled(example) if shapes else example)
        expected = [*tensors_of(model(*args, **kwargs))]
        found = [*tensors_of(torch.export.load(path).module()(*args, **kwargs))]
    return _checked(path, difference([expected], [found], floor=1), "torch.export")


def _onnx(model: nn.Module, example: Example, shapes: Any, folder: Path) -> dict[str, Any]:
    for package in ("onnx", "onnxscript"):
        _needed(package)
    args, kwargs = call_arguments(example)
    path = folder / ONNX
    with evaluating(model), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            model, args, kwargs=kwargs, dynamo=True, verbose=False, dynamic_shapes=shapes
        )
        assert program is not None
        with whole(path) as temporary:
            program.save(temporary)
        args, kwargs = call_arguments(_doubled(example) if shapes else example)
        expected = [*tensors_of(model(*args, **kwargs))]
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return _checked(path, None, "onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    flat = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    names = [each.name for each in session.get_inputs()]
    feed: Mapping[str, Any] = {name: value.numpy() for name, value in zip(names, flat, strict=True)}
    found = [torch.from_numpy(value) for value in session.run(None, feed)]
    return _checked(path, difference([expected], [found], floor=1), "onnxruntime")


def _semi_structured(model: nn.Module, example: Example, folder: Path) -> dict[str, Any]:
    """Time 2:4 layers on the device, in half precision, and write which get faster."""
    found = sparse_layers(model.half().cuda(), tree_map(_on_device, example))
    path = folder / SEMI_STRUCTURED
    write_layers(found, path)
    faster = sum(layer.converted for layer in found)
    said = f"{faster} of {len(found)} layers with 2:4 weights get faster"
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "checked": "\n  ".join([said, *map(str, found)]),
        "layers": [asdict(layer) for layer in found],
    }


def _on_device(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.cuda().half() if x.is_floating_point() else x.cuda()


def _needed(package: str) -> None:
    try:
        __import__(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError("ONNX export", package, "onnx") from error


def _checked(path: Path, gap: float | None, runtime: str) -> dict[str, Any]:
    if gap is not None and gap > CLOSE:
        raise ShrinkError(f"{path} differs from the model by {gap:.1e} relative in {runtime}")
    said = (
        f"not run: {runtime} is not installed"
        if gap is None
        else f"differs by {gap:.1e} relative in {runtime}"
    )
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "difference": gap,
        "checked": said,
    }
