"""A cut in place takes no second copy of a model, and what fails is put back bit for bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.errors import SecateurError, VerificationError
from secateur.shrinking import verify
from secateur.shrinking.contents import Shortened, has_own_memory
from secateur.shrinking.slices import Choice
from tests.process.process import changed, state_of

Made = tuple[nn.Module, Any]


def linear() -> Made:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(3, 8)


def convolutions() -> Made:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(6, 4, 1)), torch.randn(2, 3, 8, 8)


def channels_last() -> Made:
    model, x = convolutions()
    return model.to(memory_format=torch.channels_last), x


def in_groups() -> Made:
    layers = nn.Conv2d(4, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(16, 4, 1)), torch.randn(2, 4, 6, 6)


def with_gradients() -> Made:
    model, x = linear()
    model(x).sum().backward()
    return model, x


def attention() -> Made:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)


class Recurrent(nn.Module):
    """A layer whose code is torch's, which is replaced, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0])


def recurrent() -> Made:
    return Recurrent(), torch.randn(2, 5, 4)


class Tied(nn.Module):
    """One parameter in two layers, one that is a view of another, and a buffer that is one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.wide = nn.Linear(8, 16)
        self.last = nn.Linear(16, 4)
        self.scale = nn.Parameter(self.wide.bias.data[:8])
        self.register_buffer("seen", self.last.weight.data.view(-1)[:8])

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu()).relu() * self.scale * self.seen
        return self.last(self.wide(x).relu())


def tied() -> Made:
    return Tied(), torch.randn(3, 8)


def of_one_memory() -> Made:
    model, x = linear()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    start = 0
    for parameter in model.parameters():
        parameter.data = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    return model, x


FORMS = [
    *(linear, convolutions, channels_last, in_groups, with_gradients, attention, recurrent),
    *(tied, of_one_memory),
]


def held(model: nn.Module) -> dict[Any, Any]:
    """Return all that must be as before: also strides, gradients, and who shares memory."""
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    places = {n: t.untyped_storage().data_ptr() for n, t in tensors.items()}
    found = state_of(model)
    for name, tensor in tensors.items():
        shares = [other for other, place in places.items() if place == places[name]]
        gradient = tensor.grad
        given = gradient if gradient is None else (id(gradient), gradient.flatten().tolist())
        found["more of", name] = tensor.stride(), tensor.storage_offset(), shares, given
    return found


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify.Check, "compare", compare)


def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*_: Any, **__: Any) -> None:
        raise VerificationError("no", "the example")

    monkeypatch.setattr(verify.Check, "compare", compare)


@pytest.mark.parametrize(
    ("fault", "frugal"), [(interrupted, False), (broken, True)], ids=["interrupted", "broken"]
)
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_prune_in_place_when_the_check_fails_then_every_bit_is_as_before(
    form: Callable[[], Made],
    frugal: bool,
    fault: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if frugal:
        monkeypatch.setattr(verify, "FRUGAL_BYTES", -1)
    model, x = form()
    model.eval()
    before = held(model)
    fault(monkeypatch)
    with pytest.raises((KeyboardInterrupt, SecateurError)):
        secateur.prune(model, x, 0.5, criterion="l2", inplace=True)
    assert changed(before, held(model)) == []


def test_prune_in_place_when_others_look_at_a_weight_then_they_still_do_once_it_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = linear()
    view, array = model[0].weight.data.view(-1), model[2].weight.detach().numpy()
    interrupted(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(model, x, 0.5, criterion="l2", inplace=True)
    with torch.no_grad():
        model[0].weight.fill_(7.0)
        model[2].weight.fill_(9.0)
    assert bool((view == 7).all())
    assert bool((array == 9).all())


def test_prune_in_place_when_it_is_checked_then_there_is_no_second_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verify, "FRUGAL_BYTES", -1)
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    weights = sum(p.nbytes for p in model.parameters())
    gc.collect()
    others = _bytes() - weights
    seen: list[float] = []
    compare = verify.Check.compare

    def watched(*given: Any, **options: Any) -> Any:
        seen.append((_bytes() - others) / weights)
        return compare(*given, **options)

    monkeypatch.setattr(verify.Check, "compare", watched)
    secateur.prune(model, torch.randn(1, 512), 0.5, criterion="l2", inplace=True)
    assert len(seen) == 1
    assert 0.9 < seen[0] < 1.1


def _bytes() -> int:
    """Return the bytes of all dense tensors that are alive."""
    found: dict[int, int] = {}
    for each in gc.get_objects():
        if type(each) in (Tensor, nn.Parameter) and each.layout is torch.strided:
            memory = each.untyped_storage()
            found[memory._cdata] = memory.nbytes()
    return sum(found.values())


TYPES = [torch.float32, torch.float16, torch.complex64, torch.int8, torch.bool]
TYPES += [torch.float8_e4m3fn, torch.bfloat16, torch.complex128]


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    data=st.data(),
    dtype=st.sampled_from(TYPES),
    bands=st.booleans(),
)
def test_shortened_when_it_is_undone_then_all_is_as_before_whatever_was_kept(
    shape: list[int], data: st.DataObject, dtype: torch.dtype, bands: bool
) -> None:
    shape = [2 * shape[0], *shape[1:]]
    bits = torch.randint(0, 2 if dtype is torch.bool else 250, (*shape, dtype.itemsize))
    tensor = bits.to(torch.uint8).view(dtype).view(shape)
    order = data.draw(st.permutations(range(len(shape))))
    back = sorted(range(len(shape)), key=order.__getitem__)
    tensor = tensor.permute(order).contiguous().permute(back)
    before, strides = tensor.contiguous().view(torch.uint8).clone(), tensor.stride()
    dim = data.draw(st.integers(0, len(shape) - 1))
    several = 2 if bands and dim else 1
    many = data.draw(st.integers(0, shape[dim] - 1))
    kept = [torch.randperm(shape[dim])[:many].sort().values for _ in range(several)]
    change = Shortened(tensor, Choice(dim, tuple(kept)))
    change.undo()  # before anything has changed
    change.do()
    assert tensor.shape[dim] == many
    change.undo()
    change.undo()
    assert tensor.stride() == strides
    assert torch.equal(tensor.contiguous().view(torch.uint8), before)


def test_own_memory_when_others_may_look_then_it_is_not_the_tensors_own() -> None:
    tensor, whole = torch.zeros(4, 4), torch.zeros(8)
    turned = nn.Parameter(torch.zeros(3, 4).T.clone())
    assert has_own_memory(tensor)
    assert has_own_memory(turned)
    assert not has_own_memory(whole[::2])
    assert not has_own_memory(torch.zeros(1).expand(4))
    assert not has_own_memory(torch.zeros(4).share_memory_())
    assert not has_own_memory(torch.frombuffer(bytearray(16), dtype=torch.float32))
    assert not has_own_memory(torch.zeros(4, device="meta"))
    memory = tensor.untyped_storage()
    assert not has_own_memory(tensor), memory
