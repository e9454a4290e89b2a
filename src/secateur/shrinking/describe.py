"""What torch's own layers say of themselves: ``in_features``, ``num_channels`` and the like.

Their forward never reads these numbers, so no trace can find them; their repr does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from secateur.replacements import name_of
from secateur.runtime.said import SAYS, said_by


def descriptions(module: nn.Module) -> dict[str, Any]:
    """Return what a module's attributes have to say for the tensors that it has.

    >>> layer = nn.Linear(4, 3)
    >>> layer.weight = nn.Parameter(layer.weight[:2])
    >>> descriptions(layer)
    {'in_features': 4, 'out_features': 2}
    """
    found: dict[str, Any] = {}
    for name, (held, dim, times) in said_by(module).items():
        tensor = _tensor(module, held)
        if tensor is not None and hasattr(module, name):
            found[name] = tensor.shape[dim] * (getattr(module, times) if times else 1)
    lengths = vars(module).get("axes_lengths")
    if isinstance(lengths, dict) and "_axes_lengths" in vars(module):
        found["_axes_lengths"] = tuple(lengths.items())  # einops' layers keep them twice
    if isinstance(module, nn.TransformerEncoder) and any(map(name_of, module.modules())):
        found["use_nested_tensor"] = False  # the replacements of its layers take none
    return found


SIZES = {
    *(name for _, says in SAYS for name in says),
    *("groups", "num_groups", "normalized_shape", "unflattened_size", "output_size"),
    *("num_heads", "embed_dim", "head_dim", "v_head_dim", "kdim", "vdim", "scale", "eps"),
    *("hidden_size", "input_size", "proj_size"),
}
"""Attributes of torch's own layers that say how large something is, or that take up a factor.

The others (strides, paddings, probabilities) say what is computed, and no cut changes them.
"""


def says_size(module: nn.Module, name: str) -> bool:
    """Tell whether an attribute may be a size: of torch's own, only those that are.

    >>> says_size(nn.Conv2d(2, 2, 3), "groups"), says_size(nn.Conv2d(2, 2, 3), "stride")
    (True, False)
    """
    if name in SIZES or "." in name:  # or of an object that is no layer
        return True
    theirs = [kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn.")]
    if type(module) in theirs:
        return not theirs or theirs == [nn.Module]
    own = {n for kind in theirs for n in (*getattr(kind, "__constants__", ()), *_annotated(kind))}
    return name not in own


def _annotated(kind: type) -> dict[str, Any]:
    return vars(kind).get("__annotations__", {})


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    for made_of in (f"{name}_orig", f"{name}_v"):  # torch's pruning, spectral and weight norms
        if (parameter := module._parameters.get(made_of)) is not None:
            return parameter  # the tensor of that name is of the last forward
    tensor: Tensor | None = getattr(module, name, None)
    if tensor is None and isinstance(module, nn.modules.batchnorm._NormBase):
        return module.running_mean
    return tensor
