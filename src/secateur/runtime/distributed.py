"""Several processes: statistics are reduced before anything is decided, and decisions compared.

Under DDP and FSDP every rank must end with the same masks.  Weights and averaged gradients are the
same on all ranks, but what a rank saw of the data is its own: a decision from that alone diverges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from secateur.errors import DivergenceError

if TYPE_CHECKING:  # a second of imports, for those who shard; they have made it already
    from torch.distributed.tensor import DTensor

K = TypeVar("K", bound=Hashable)
Reduction = Literal["sum", "mean", "max"]


def world() -> int:
    """Return the number of processes, 1 where no process group was made.

    >>> world()
    1
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, 0 where no process group was made.

    >>> rank()
    0
    """
    return dist.get_rank() if world() > 1 else 0


def reduced(tensor: Tensor, how: Reduction) -> Tensor:
    """Return the sum, mean or maximum of a tensor over all ranks, the same bits on each.

    >>> reduced(torch.tensor([1.0, 2.0]), "sum")
    tensor([1., 2.])
    """
    if world() == 1:
        return tensor
    total = tensor.detach().clone().to(_device())
    dist.all_reduce(total, dist.ReduceOp.MAX if how == "max" else dist.ReduceOp.SUM)
    return (total / world() if how == "mean" else total).to(tensor.device)


def summed(sums: Mapping[K, Mapping[str, Tensor]]) -> dict[K, dict[str, Tensor]]:
    """Return sums over all ranks, of which each may have seen other things.

    >>> summed({"a": {"rows": torch.tensor(3)}})
    {'a': {'rows': tensor(3)}}
    """
    mine = {key: dict(found) for key, found in sums.items()}
    if world() == 1:
        return mine
    shapes = {k: {n: (tuple(t.shape), t.dtype) for n, t in s.items()} for k, s in mine.items()}
    everywhere: list[Any] = [None] * world()
    dist.all_gather_object(everywhere, shapes)
    known: dict[K, dict[str, Any]] = {}
    for there in everywhere:
        for key, found in there.items():
            known.setdefault(key, {}).update(found)
    total: dict[K, dict[str, Tensor]] = {}
    for key in sorted(known, key=repr):  # in one order on all ranks
        for name in sorted(known[key]):
            shape, dtype = known[key][name]
            own = mine.get(key, {}).get(name, torch.zeros(shape, dtype=dtype))
            total.setdefault(key, {})[name] = reduced(own, "sum")
    return total


def sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether a tensor is a DTensor, of which each process holds a part.

    >>> sharded(torch.ones(2))
    False
    """
    return hasattr(tensor, "placements")


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards; every rank must ask for it."""
    return tensor.full_tensor() if sharded(tensor) else tensor


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
    ends = torch.tensor([own, -own], dtype=torch.int64, device=_device())
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise DivergenceError(
            f"rank {rank()} decided on other masks than another rank: their weights or "
            "scores differ.  Wrap the model in DistributedDataParallel or fully_shard before "
            "training, start all ranks from the same weights and config, and call step() on all"
        )


def _device() -> torch.device:
    """Return where collectives of the process group take their tensors."""
    if "nccl" in dist.get_backend():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
