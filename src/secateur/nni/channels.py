"""Which dimension of a layer's inputs and outputs holds the channels, as its class says.

Around convolutions and batch norms it is dimension 1, around a Linear the last.  Of other modules
(an activation, a pooling, a block) only a forward tells: ``secateur.nni.placed``.
"""

from __future__ import annotations

from torch import Tensor, nn

_RANKS: dict[type[nn.Module], int] = {
    **dict.fromkeys((nn.Conv1d, nn.ConvTranspose1d, nn.InstanceNorm1d), 1),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d, nn.InstanceNorm2d, nn.BatchNorm2d), 2),
    **dict.fromkeys((nn.Conv3d, nn.ConvTranspose3d, nn.InstanceNorm3d, nn.BatchNorm3d), 3),
}
_ANY_RANK = (nn.BatchNorm1d, nn.SyncBatchNorm, nn.GroupNorm)


def channel_dim(module: nn.Module) -> int | None:
    """Return the dimension of the channels in a batch: 1, -1, or None where no class says it.

    >>> [channel_dim(m) for m in (nn.Conv2d(2, 4, 3), nn.Linear(2, 4), nn.ReLU())]
    [1, -1, None]
    """
    if isinstance(module, (*_RANKS, *_ANY_RANK)):
        return 1
    return -1 if isinstance(module, nn.Linear) else None


def rank_after_channels(module: nn.Module) -> int | None:
    """Return how many dimensions follow the channels; None where that differs between calls.

    >>> [rank_after_channels(m) for m in (nn.Conv2d(2, 4, 3), nn.Linear(2, 4), nn.BatchNorm1d(4))]
    [2, 0, None]
    """
    found = next((rank for kind, rank in _RANKS.items() if isinstance(module, kind)), None)
    return 0 if found is None and isinstance(module, nn.Linear) else found


def batched(module: nn.Module, value: Tensor) -> Tensor:
    """Return an input or output with the batch in front, also of a call without one.

    >>> import torch
    >>> batched(nn.Conv2d(2, 4, 3), torch.zeros(4, 6, 6)).shape
    torch.Size([1, 4, 6, 6])
    """
    rank = rank_after_channels(module)
    alone = value.ndim < 2 or (rank is not None and value.ndim == rank + 1)
    return value.unsqueeze(0) if alone else value


def spread(vector: Tensor, module: nn.Module) -> Tensor:
    """Return one number for each channel in the shape in which it multiplies a layer's values.

    It stays a vector where only a value can tell.

    >>> import torch
    >>> spread(torch.ones(4), nn.Conv2d(2, 4, 3)).shape, spread(torch.ones(4), nn.ReLU()).shape
    (torch.Size([1, 4, 1, 1]), torch.Size([4]))
    """
    rank = rank_after_channels(module)
    return vector if rank is None else vector.view(1, -1, *[1] * rank)


def fitted(mask: Tensor, module: nn.Module, shape: tuple[int, ...]) -> Tensor | str:
    """Return a mask in a shape that multiplies a value of ``shape``, or why there is none.

    It broadcasts as in torch, and may have a batch dimension of size 1 that the value lacks.  A
    vector lies along the channels.
    """
    while mask.ndim > len(shape) and mask.shape[0] == 1:
        mask = mask[0]
    if mask.ndim == 1 and len(shape) > 1 and mask.numel() > 1:
        place = _place_of_vector(len(mask), module, shape)
        if isinstance(place, str):
            return place
        mask = mask.view(-1, *[1] * (len(shape) - 1 - place))
    last = shape[len(shape) - mask.ndim :] if mask.ndim else ()
    if mask.ndim > len(shape) or any(
        m not in (1, n) for m, n in zip(mask.shape, last, strict=True)
    ):
        return ""
    return mask


def _place_of_vector(size: int, module: nn.Module, shape: tuple[int, ...]) -> int | str:
    """Return the dimension of a value along which a vector lies, or why that is not known."""
    dim, rank = channel_dim(module), rank_after_channels(module)
    if rank is not None:
        return len(shape) - 1 - rank
    if dim is not None:
        return dim
    found = [i for i in range(1, len(shape)) if shape[i] == size]
    if len(found) > 1:
        return (
            f": it may lie along dimension {' or '.join(map(str, found))}; give a mask of as many "
            "dimensions, or the target a granularity such as [1, -1, -1]"
        )
    return found[0] if found else len(shape) - 1
