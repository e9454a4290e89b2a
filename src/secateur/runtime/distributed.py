"""Several processes: statistics are reduced before anything is decided, and decisions compared.

Under DDP and FSDP every rank must end with the same masks.  Weights and averaged gradients are the
same on all ranks, but what a rank saw of the data is its own: a decision from that alone diverges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from secateur.errors import DivergenceError

from .ranks import meet, place, rank, settled, world

if TYPE_CHECKING:  # a second of imports, for those who shard; they have made it already
    from torch.distributed.tensor import DTensor

K = TypeVar("K", bound=Hashable)
Reduction = Literal["sum", "mean", "max"]


def reduced(tensor: Tensor, how: Reduction) -> Tensor:
    """Return the sum, mean or maximum of a tensor over all ranks, the same bits on each.

    >>> reduced(torch.tensor([1.0, 2.0]), "sum")
    tensor([1., 2.])
    """
    return reduced_each({"": tensor}, how)[""]


def reduced_each(tensors: Mapping[K, Tensor], how: Reduction) -> dict[K, Tensor]:
    """Return the sums, means or maxima of tensors over all ranks, which have the same ones.

    >>> reduced_each({"a": torch.tensor([1.0, 2.0])}, "sum")
    {'a': tensor([1., 2.])}
    """
    if world() == 1:
        return dict(tensors)
    meet(f"the {how} of {[(k, tuple(t.shape), t.dtype) for k, t in tensors.items()]}")
    return {key: _reduced(tensor, how) for key, tensor in tensors.items()}


def _reduced(tensor: Tensor, how: Reduction) -> Tensor:
    total = tensor.detach().clone().to(place())
    dist.all_reduce(total, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    return (total / world() if how == "mean" else total).to(tensor.device)


def summed(sums: Mapping[K, Mapping[str, Tensor]]) -> dict[K, dict[str, Tensor]]:
    """Return sums over all ranks, of which each may have seen other things.

    Raises:
        DivergenceError: on every rank, when one has a sum of another shape than another.

    >>> summed({"a": {"rows": torch.tensor(3)}})
    {'a': {'rows': tensor(3)}}
    """
    mine = {key: dict(found) for key, found in sums.items()}
    if world() == 1:
        return mine
    meet("sums of what each has seen")
    shapes = {k: {n: (tuple(t.shape), t.dtype) for n, t in s.items()} for k, s in mine.items()}
    everywhere: list[Any] = [None] * world()
    dist.all_gather_object(everywhere, shapes)
    known: dict[K, dict[str, Any]] = {}
    for there in everywhere:
        for key, found in there.items():
            for name, form in found.items():
                if known.setdefault(key, {}).setdefault(name, form) != form:
                    raise settled(
                        DivergenceError(
                            f"what ranks have seen does not add up: {name!r} of {key!r} is "
                            f"{known[key][name]} on one and {form} on another"
                        )
                    )
    total: dict[K, dict[str, Tensor]] = {}
    for key in sorted(known, key=repr):  # in one order on all ranks
        for name in sorted(known[key]):
            shape, dtype = known[key][name]
            own = mine.get(key, {}).get(name, torch.zeros(shape, dtype=dtype))
            total.setdefault(key, {})[name] = _reduced(own, "sum")
    return total


def sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether a tensor is a DTensor, of which each process holds a part.

    >>> sharded(torch.ones(2))
    False
    """
    return hasattr(tensor, "placements")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards; every rank must ask for it."""
    if not sharded(tensor):
        return tensor
    meet(f"the shards of a tensor {tuple(tensor.shape)}")
    return tensor.full_tensor()


def restoring(tensor: Tensor) -> Callable[[], object]:
    """Return what gives a tensor back the numbers that it has now: of shards, each rank its own."""
    own = (tensor.to_local() if sharded(tensor) else tensor).detach()
    return partial(own.copy_, own.clone())


def check_same(masks: Mapping[str, Tensor]) -> None:
    """Compare a hash of the masks over all ranks.

    Raises:
        DivergenceError: on every rank, when any two differ.
    """
    if world() == 1:
        return
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode())
        digest.update(masks[name].cpu().to(torch.uint8).numpy().tobytes())
    own = int.from_bytes(digest.digest()[:7], "big")
    ends = torch.tensor([own, -own], dtype=torch.int64, device=place())
    meet("a comparison of masks")
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise settled(
            DivergenceError(
                f"rank {rank()} decided on other masks than another rank: their weights or "
                "scores differ.  Wrap the model in DistributedDataParallel or fully_shard before "
                "training, start all ranks from the same weights and config, and call step() on all"
            )
        )
