"""``count_flops_params``: what each layer of a model costs on one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import ConfigError
from secateur.graph.cost import macs
from secateur.graph.program import ModuleCall, Ref
from secateur.masks import masking
from secateur.runtime.forward import evaluating
from secateur.runtime.undo import Undo, unhook_module
from secateur.structure import analyze
from secateur.types import call_arguments

__all__ = ["count_flops_params"]

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.Linear, nn.RNNBase, nn.RNNCellBase),
)
"""What the mode "default" counts, as NNI does."""

Row = dict[str, Any]


def count_flops_params(
    model: nn.Module,
    x: Any,
    custom_ops: Mapping[type[nn.Module], Callable[..., Row]] | None = None,
    verbose: bool = True,
    mode: Literal["default", "full"] = "default",
) -> tuple[int, int, list[Row]]:
    """Return the multiply-accumulates of one sample, the parameters, and both for each layer.

    NNI calls the former FLOPs.  Weights that are masked while they are on the model do not count.

    Args:
        model: any module; it is as before afterwards.
        x: example inputs, or the shape of one: a tuple of integers.
        custom_ops: module class → ``(module, inputs, output)`` → what to say of one call of it,
            with the keys "flops" and "params".
        verbose: print the table.
        mode: "default" counts convolutions, linear and recurrent layers, "full" every module that
            multiplies or has parameters.

    Returns:
        Both sums, and a dict of each call with the keys name, module_type, weight_shape, flops,
        params, input_size and output_size.

    Raises:
        ConfigError: the mode is none of both.
        TraceError: the forward failed.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 10))
    >>> flops, params, layers = count_flops_params(net, (5, 3, 4, 4), verbose=False)
    >>> flops, params, [layer["name"] for layer in layers]
    (1184, 554, ['0', '2'])
    """
    if mode not in ("default", "full"):
        raise ConfigError(f"mode must be 'default' or 'full', got {mode!r}.")
    shape = isinstance(x, (tuple, list)) and all(isinstance(n, int) for n in x)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    example = torch.zeros(tuple(x), device=device) if shape else x
    rows = _rows(model, example, mode)
    if custom_ops:
        rows = _customised(model, example, custom_ops, rows)
    if verbose:
        _show(rows)
    params = sum({row["name"]: row["params"] for row in rows}.values())
    return sum(row["flops"] for row in rows), params, rows


def _rows(model: nn.Module, example: Any, mode: str) -> list[Row]:
    on = masking.masks_on(model)
    with Undo() as undo:
        undo(partial(masking.put_on, model, on))
        masking.take_off(model, bake=False)
        structure = analyze(model, example)
    recording, inferred = structure.inferred.recording, structure.inferred
    batch = next((recording.shapes[i][0] for i in recording.inputs if recording.shapes[i]), 1) or 1
    rows = []
    for call in recording.calls:
        module = model.get_submodule(call.path)
        own = [recording.ops[i] for i in call.ops if recording.ops[i].module == call.path]
        density = {n: float(m.float().mean()) for n, m in on.items() if n == f"{call.path}.weight"}
        flops = int(macs(inferred, lambda atom: atom.size, own) * next(iter(density.values()), 1))
        params = sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, LAYERS) or (mode == "full" and (flops or params)):
            rows.append(_row(call, module, flops // batch, params, recording.shapes))
    return rows


def _row(
    call: ModuleCall, module: nn.Module, flops: int, params: int, shapes: list[tuple[int, ...]]
) -> Row:
    weight = getattr(module, "weight", None)
    parts = tuple(call.output.values()) if isinstance(call.output, dict) else call.output
    parts = parts if isinstance(parts, tuple) else (parts,)
    return {
        "name": call.path,
        "module_type": type(module).__name__,
        "weight_shape": tuple(weight.shape) if isinstance(weight, Tensor) else 0,
        "flops": flops,
        "params": params,
        "input_size": next((shapes[value] for value in call.inputs.values()), ()),
        "output_size": next((shapes[part.value] for part in parts if isinstance(part, Ref)), ()),
    }


def _customised(
    model: nn.Module, example: Any, custom_ops: Mapping[type[nn.Module], Any], rows: list[Row]
) -> list[Row]:
    """Return the rows with those of the user's own classes in the user's own words."""
    found: list[Row] = []

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            said = custom_ops[type(module)](module, inputs, output)
            sizes = [tuple(t.shape) for t in tree_leaves(output) if isinstance(t, Tensor)]
            read = [tuple(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
            ends = {"input_size": read[0] if read else (), "output_size": sizes[0] if sizes else ()}
            kind = {"name": name, "module_type": type(module).__name__}
            found.append({**kind, **ends, "weight_shape": 0, **said})

        return see

    own = {name: m for name, m in model.named_modules() if type(m) in custom_ops}
    args, kwargs = call_arguments(example)
    with Undo() as undo:
        for name, module in own.items():
            hook = watch(name)
            undo(partial(unhook_module, module, hook))
            module.register_forward_hook(hook)
        with evaluating(model), torch.no_grad():
            model(*args, **kwargs)
    return [row for row in rows if row["name"] not in own] + found


def _show(rows: list[Row]) -> None:
    table = Table(title="per sample", title_justify="left")
    columns = ("name", "module_type", "weight_shape", "input_size", "output_size")
    for column in columns:
        table.add_column(column, overflow="fold")
    for column in ("flops", "params"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (f"{row['flops']:,}", f"{row['params']:,}")
        table.add_row(*(str(row[column]) for column in columns), *numbers)
    Console().print(table)
    print(f"FLOPs total: {sum(row['flops'] for row in rows):,}")
    print(f"#Params total: {sum({row['name']: row['params'] for row in rows}.values()):,}")
