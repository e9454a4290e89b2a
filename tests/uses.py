"""Ways to use a model, each of which returns what it computed: what masks must not change.

However a model is called: a product of weight and mask that is made earlier than its module's
forward, kept for longer or shared by several reads, for speed, is another one in some of these.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from tests.by_hand import ByHand


def nothing(net: Net) -> None:
    """Do nothing between two blocks."""


def plainly(block: nn.Module, x: Tensor) -> Tensor:
    return block(x)  # type: ignore[no-any-return]


class Net(nn.Module):
    """Two blocks and a head; what is done between the blocks, and how one is called, is given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.block = nn.Sequential(conv, nn.BatchNorm2d(8), nn.SiLU())
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)
        self.between: Callable[[Net], Any] = nothing
        self.call: Callable[[nn.Module, Tensor], Tensor] = plainly

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.between(self)
        x = x + self.call(self.block, x)
        return self.head(self.norm(x.mean((2, 3))))  # type: ignore[no-any-return]


def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Net()
        for parameter in made.parameters():  # norms too have other values than 1 and 0
            nn.init.normal_(parameter, 0.3, 0.5)
        for norm in (made.stem[1], made.block[1]):  # and have seen other channels than zeros
            nn.init.normal_(norm.running_mean, 0.3, 0.5)
    return made


X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(2))
Y = torch.arange(4)


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor = X) -> Tensor:
    return F.cross_entropy(model(x), Y)


def step(model: nn.Module, called: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Train for two steps, with a weight decay that reaches what is below the masks."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    losses: list[Tensor] = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(loss_of(model if called is None else called))
        losses[-1].backward()
        optimizer.step()
    return losses


def evaluated(model: Net) -> list[Tensor]:
    step(model)  # running statistics that are not those of a fresh norm
    return step(model.eval())


def in_autocast(model: Net) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        return step(model)


def checkpointed(model: Net, *, reentrant: bool) -> list[Tensor]:
    model.call = partial(checkpoint, use_reentrant=reentrant)
    return step(model)


def wholly_checkpointed(model: Net, *, reentrant: bool) -> list[Tensor]:
    x = X.clone().requires_grad_()
    return step(model, lambda _: checkpoint(model, x, use_reentrant=reentrant))


def compiled(model: Net) -> list[Tensor]:
    torch.compiler.reset()
    return step(model, torch.compile(model, backend="aot_eager"))


def together(model: Net) -> list[Tensor]:
    losses = [loss_of(model), loss_of(model, 2 * X)]
    sum(losses).backward()  # type: ignore[union-attr]
    return losses


def changed_in_between(model: Net) -> list[Tensor]:
    losses = []
    for _ in range(2):
        losses.append(loss_of(model))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
    sum(losses).backward()  # type: ignore[union-attr]
    return losses


def retained(model: Net) -> list[Tensor]:
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    loss.backward()
    return [loss]


def in_mode(model: Net, *, mode: Callable[[], Any]) -> list[Tensor]:
    with mode():
        found = [model(X), model.eval()(X)]
    return [*(each.clone() for each in found), *step(model.train())]


def writing(model: Net, *, write: Callable[[Tensor], Any]) -> list[Tensor]:
    """Change the second block once the first has run, as MoCo's forward does its encoder."""
    model.between = partial(written, write=write)
    return step(model)


@torch.no_grad()
def written(model: Net, write: Callable[[Tensor], Any]) -> None:
    for parameter in model.block.parameters():
        write(parameter)


def replace(parameter: Tensor) -> None:
    parameter.data = parameter.data * 0.9


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda p: p.mul_(0.9),
    "by data in place": lambda p: p.data.mul_(0.9),
    "by other data": replace,
    "by numpy": lambda p: p.detach().numpy().__imul__(0.9),
}


def frozen_on_the_way(model: Net) -> list[Tensor]:
    model.between = lambda net: net.block.requires_grad_(False)
    return step(model)


def alone(model: Net) -> list[Tensor]:
    features = torch.ones(2, 8, 4, 4)
    found = model.block(features)
    (found.square().sum() + model.norm(found.mean((2, 3))).square().sum()).backward()
    return [found]


def norm_alone(model: Net) -> list[Tensor]:
    """Without the convolution before it, whose masks make channels zero."""
    found = model.block[1](X.repeat(1, 3, 1, 1)[:, :8])
    found.square().sum().backward()
    return [found]


def within_another(model: Net) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        larger = nn.Sequential(nn.Conv2d(3, 3, 1), model, nn.Linear(4, 4))
    return step(larger)


def twice_in_a_forward(model: Net) -> list[Tensor]:
    model.call = lambda block, x: block(block(x))
    return step(model)


def unused(model: Net) -> list[Tensor]:
    model.call = lambda block, x: x
    return step(model)


def read_and_not_used(model: Net) -> list[Tensor]:
    model.call = lambda block, x: block(x).detach() + x
    return step(model)


def twice_differentiated(model: Net) -> list[Tensor]:
    x = X.clone().requires_grad_()
    slope = torch.autograd.grad(loss_of(model, x), x, create_graph=True)[0]
    slope.square().sum().backward()
    return [slope]


def some_gradients(model: Net) -> list[Tensor]:
    loss = loss_of(model)
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss, parameters[2:4], retain_graph=True)
    return [*first, *torch.autograd.grad(loss, parameters[-3:-1])]


def losses_apart(model: Net) -> list[Tensor]:
    """Two graphs of one forward, of which each is freed by a backward of its own."""
    losses = []

    def apart(block: nn.Module, x: Tensor) -> Tensor:
        losses.append(block(x.detach()).square().mean())
        return x.detach()

    model.call = apart
    losses.append(loss_of(model))
    for loss in losses:
        loss.backward()
    return losses


def stepping_in_backward(model: Net) -> list[Tensor]:
    """Optimizers that step as soon as a gradient is there, and let go of it."""
    order = []

    @torch.no_grad()
    def update(parameter: Tensor) -> None:
        order.append(next(i for i, p in enumerate(model.parameters()) if p is parameter))
        parameter.sub_(0.1 * parameter.grad)  # type: ignore[operator]
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    loss = loss_of(model)
    loss.backward()
    return [loss, torch.tensor(order), loss_of(model)]


def saved_elsewhere(model: Net) -> list[Tensor]:
    """What is saved for the backward is somebody else's to keep, as often as by hand."""
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)
    loss.backward()
    return [loss, torch.tensor(len(packed))]


def copied(model: Net) -> list[Tensor]:
    step(model)
    twin = copy.deepcopy(model)
    return [*step(twin), *everything(twin, [])]


def pickled(model: Net) -> list[Tensor]:
    step(model)
    twin = pickle.loads(pickle.dumps(model))
    return [*step(twin), *everything(twin, [])]


def called_with_others(model: Net) -> list[Tensor]:
    given = {n: (p.detach() * 0.9).requires_grad_() for n, p in model.named_parameters()}
    loss = loss_of(partial(functional_call, model, given))
    return [loss, *torch.autograd.grad(loss, list(given.values()))]


def transformed(model: Net) -> list[Tensor]:
    given = {n: p.detach() for n, p in model.named_parameters()}
    model.eval()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return loss_of(partial(functional_call, model, parameters))

    return [*grad(loss)(given).values(), *jvp(loss, (given,), (given,))]


def many_at_once(model: Net) -> list[Tensor]:
    model.eval()
    models = [model, copy.deepcopy(model)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    given = {n: v.detach() for n, v in (parameters | buffers).items()}
    given = {n: v + v.new_tensor([0, 1]).view(2, *[1] * (v.ndim - 1)) for n, v in given.items()}
    return [vmap(lambda each: functional_call(model, each, (X,)))(given)]


def in_threads(model: Net) -> list[Tensor]:
    model.eval()
    with ThreadPoolExecutor(
        1 if any(isinstance(m, ByHand) for m in model.modules()) else 2
    ) as pool:  # by hand one at a time
        losses = list(pool.map(partial(loss_of, model), [X, 2 * X, 3 * X, 4 * X]))
    for loss in losses:
        loss.backward()
    return losses


WAYS: dict[str, Callable[[Net], list[Tensor]]] = {
    "training": step,
    "evaluation": evaluated,
    "autocast": in_autocast,
    "a block checkpointed": partial(checkpointed, reentrant=False),
    "a block checkpointed, reentrant": partial(checkpointed, reentrant=True),
    "all checkpointed": partial(wholly_checkpointed, reentrant=False),
    "all checkpointed, reentrant": partial(wholly_checkpointed, reentrant=True),
    "compiled": compiled,
    "two forwards, one backward": together,
    "weights changed in between": changed_in_between,
    "retained graph": retained,
    "no gradients": partial(in_mode, mode=torch.no_grad),
    "inference": partial(in_mode, mode=torch.inference_mode),
    **{f"written in forward {how}": partial(writing, write=w) for how, w in WRITES.items()},
    "frozen on the way": frozen_on_the_way,
    "a module alone": alone,
    "a norm alone": norm_alone,
    "within another model": within_another,
    "a block twice": twice_in_a_forward,
    "a block unused": unused,
    "a block without gradients": read_and_not_used,
    "differentiated twice": twice_differentiated,
    "gradients of some": some_gradients,
    "losses apart": losses_apart,
    "stepping in the backward": stepping_in_backward,
    "saved tensors packed": saved_elsewhere,
    "deepcopy": copied,
    "pickle": pickled,
    "functional_call": called_with_others,
    "torch.func": transformed,
    "vmap": many_at_once,
    "threads": in_threads,
}


def everything(model: nn.Module, found: list[Tensor]) -> Iterator[Tensor]:
    """Yield what a use returned, and all that it left in the model."""
    yield from found
    for parameter in model.parameters():
        yield parameter
        yield torch.zeros(0) if parameter.grad is None else parameter.grad
    yield from model.buffers()
