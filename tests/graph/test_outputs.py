"""Results in any shape: returned in whatever holds them, or left in the model."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError


@dataclasses.dataclass(slots=True)
class Slots:
    logits: Tensor


class Plain:
    def __init__(self, logits: Tensor):
        self.inner = {"logits": [logits]}


class Net(nn.Module):
    """Two layers and a head, and one more layer whose results go where ``hand`` puts them."""

    def __init__(self, hand: Callable[[Any, Tensor, Tensor], Any]):
        super().__init__()
        self.hand = hand
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16)
        self.head, self.aside = nn.Linear(16, 4), nn.Linear(16, 6)
        self.held: dict[str, Any] = {}
        self.row: list[Any] = []

    def forward(self, x: Tensor) -> Any:
        h = self.first(x).relu()
        return self.hand(self, self.head(self.second(h).relu()), self.aside(h))


def net(hand: Callable[[Any, Tensor, Tensor], Any]) -> nn.Module:
    torch.manual_seed(0)
    return Net(hand).eval()


def lazily(_: Any, out: Tensor, aside: Tensor) -> Iterator[Tensor]:
    yield out
    yield aside.relu()


RETURNED: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "tuple": lambda m, out, aside: (out, aside),
    "slots": lambda m, out, aside: Slots(torch.cat([out, aside], -1)),
    "slots beside": lambda m, out, aside: (out, Slots(aside)),
    "object": lambda m, out, aside: (Plain(out), Plain(aside)),
    "set": lambda m, out, aside: {out, aside},
    "frozenset in a dict": lambda m, out, aside: {"all": frozenset([out, aside])},
    "deque": lambda m, out, aside: deque([out, aside]),
    "generator": lazily,
    "iterator": lambda m, out, aside: iter([out, aside]),
    "map": lambda m, out, aside: map(torch.relu, [out, aside]),
    "array": lambda m, out, aside: (out.numpy(), aside.numpy()),
    "array beside": lambda m, out, aside: (out, aside.double().numpy()),
    "floats": lambda m, out, aside: (out.tolist(), aside.tolist()),
    "whole numbers": lambda m, out, aside: (out, aside.long().tolist()),
    "closure": lambda m, out, aside: (out, lambda: aside),
}


def attribute(m: Any, out: Tensor, aside: Tensor) -> Tensor:
    m.last = aside
    return out


def changed_in_place(m: Any, out: Tensor, aside: Tensor) -> Tensor:
    m.last = aside
    m.last.mul_(2)
    return out


def in_a_dict(m: Any, out: Tensor, aside: Tensor) -> Tensor:
    m.held["aside"] = (aside.abs(),)
    return out


def in_a_list(m: Any, out: Tensor, aside: Tensor) -> Tensor:
    m.row.append({"aside": aside.unsqueeze(0)})
    return out


def in_a_part(m: Any, out: Tensor, aside: Tensor) -> Tensor:
    m.aside.loss = aside.square()
    return out


def as_an_array(m: Any, out: Tensor, aside: Tensor) -> Tensor:
    m.last = aside.numpy()
    return out


LEFT = [attribute, changed_in_place, in_a_dict, in_a_list, in_a_part, as_an_array]


@pytest.mark.parametrize("name", RETURNED)
def test_prune_when_results_are_in_any_container_then_they_keep_their_shape(name: str) -> None:
    result = sc.prune(net(RETURNED[name]), torch.randn(3, 8), 0.5)
    assert (result.model.head.out_features, result.model.aside.out_features) == (4, 6)
    assert result.model.first.out_features == 8
    assert result.verification.passed


@pytest.mark.parametrize("hand", LEFT)
def test_prune_when_results_stay_in_the_model_then_they_keep_their_shape(
    hand: Callable[..., Any],
) -> None:
    model = net(hand)
    before = set(vars(model))
    result = sc.prune(model, torch.randn(3, 8), 0.5)
    assert result.model.aside.out_features == 6
    assert result.model.first.out_features == 8
    assert set(vars(model)) == before
    assert not model.held
    assert not model.row


@pytest.mark.parametrize("computed", ["always", "in training"])
def test_prune_when_results_are_left_in_training_only_then_they_keep_their_shape(
    computed: str,
) -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 6)

        def forward(self, x: Tensor) -> Tensor | None:
            return self.layer(x) if self.training or computed == "always" else None

    class Trained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.aside = nn.Linear(8, 16), nn.Linear(16, 4), Aside()

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            aside = self.aside(h)
            if self.training:
                self.loss = aside.square()
            return self.head(h)

    torch.manual_seed(0)
    result = sc.prune(Trained().eval(), torch.randn(3, 8), 0.5)
    assert result.model.aside.layer.weight.shape == (6, 8)


class Remembering(nn.Module):
    """A causal convolution that is given a piece at a time, and keeps what it needs of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 16, 1), nn.Conv1d(16, 4, 3)
        self.past: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        past = torch.zeros_like(h[..., :2]) if self.past is None else self.past
        h = torch.cat([past, h], -1)
        self.past = h[..., -2:].clone()
        return self.second(h)


def test_prune_when_the_model_reads_again_what_it_left_then_it_is_no_result() -> None:
    torch.manual_seed(0)
    result = sc.prune(Remembering().eval(), torch.randn(2, 4, 8), 0.5)
    assert result.model.first.out_channels == 8
    assert result.verification.passed


@pytest.mark.parametrize("kind", ["none", "whole numbers"])
def test_prune_when_nothing_comes_back_to_compare_then_config_error(kind: str) -> None:
    hands: dict[str, Callable[..., Any]] = {
        "none": lambda m, out, aside: None,
        "closure": lambda m, out, aside: lambda: out,
        "whole numbers": lambda m, out, aside: out.argmax(-1).tolist(),
    }
    with pytest.raises(ConfigError, match="nothing can be compared"):
        sc.prune(net(hands[kind]), torch.randn(3, 8), 0.5)


@pytest.mark.parametrize("form", ["array", "floats", "numbers"])
def test_verify_when_results_are_no_tensors_then_they_are_compared(form: str) -> None:
    forms: dict[str, Callable[[Tensor], Any]] = {
        "array": lambda out: out.numpy(),
        "floats": lambda out: out.tolist(),
        "numbers": lambda out: float(out.sum()),
    }

    class Judged(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return forms[form](super().forward(x) * (2 if self[2].weight.stride(0) > 12 else 1))

    model = Judged(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with pytest.raises(sc.errors.ShrinkError):
        sc.shrink(
            model, {"0.weight": torch.arange(16)[:, None].expand(16, 8) < 8}, torch.randn(3, 8)
        )


class Given(nn.Module):
    """A model whose caller finds more in what it gave."""

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.first, self.head, self.aside = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 6)

    def forward(self, x: Tensor, store: Any) -> Tensor:
        h = self.first(x).relu()
        aside = self.aside(h)
        if self.how == "list":
            store.append(aside)
        elif self.how == "dict":
            store["aside"] = [aside]
        else:
            store.copy_(aside.mean(1, keepdim=True))
        return self.head(h)


@pytest.mark.parametrize("how", ["list", "dict", "tensor"])
def test_prune_when_the_caller_finds_results_in_what_it_gave_then_they_are_kept(how: str) -> None:
    torch.manual_seed(0)
    made: dict[str, Callable[[], Any]] = {
        "list": list,
        "dict": dict,
        "tensor": lambda: torch.zeros(3, 1),
    }
    x = torch.randn(3, 8)
    result = sc.prune(Given(how).eval(), (x, made[how]()), 0.5)
    assert result.model.aside.out_features == 6
    assert result.model.first.out_features == 8


@pytest.mark.parametrize("how", ["size", "shape", "of another"])
def test_prune_when_forward_returns_a_width_then_it_stays(how: str) -> None:
    hands: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "size": lambda h, out: (out, h.size(-1)),
        "shape": lambda h, out: {"out": out, "shape": h.shape},
        "of another": lambda h, out: (out, out.shape[-1], len(h)),
    }

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Any:
            h = self.first(x).relu()
            return hands[how](h, self.head(h))

    if how == "of another":
        assert sc.prune(Told().eval(), torch.randn(3, 8), 0.5).model.first.out_features == 8
        return
    with pytest.raises(sc.errors.NoMatchError, match="a number from its size"):
        sc.prune(Told().eval(), torch.randn(3, 8), 0.5)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_prune_when_an_input_is_sparse_then_it_is_taken(layout: torch.layout) -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
            return self.head((adjacency @ self.first(x)).relu())

    adjacency = torch.eye(3).to_sparse(layout=layout)
    result = sc.prune(Bag().eval(), (adjacency, torch.randn(3, 6)), 0.5)
    assert result.model.first.out_features == 8
    assert result.verification.passed


def test_analyze_when_a_forward_cannot_be_looked_at_then_the_error_says_what_helps() -> None:
    class Force(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(super().forward(x).sum(), x)[0]

    class Chooses(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, torch.relu, torch.tanh, (super().forward(x),))

    layers = nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)
    for kind, said in ((Force, "enable_grad"), (Chooses, "plain Python")):
        with pytest.raises(sc.errors.TraceError, match=said):
            sc.analyze(kind(*layers).eval(), torch.randn(3, 6))
    nested = torch.nested.nested_tensor([torch.randn(3, 6)], layout=torch.jagged)
    with pytest.raises(sc.errors.TraceError, match="nested"):
        sc.analyze(nn.Sequential(*layers).eval(), nested)


def test_prune_when_code_asks_whether_gradients_are_on_then_both_ways_are_seen() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow, self.fast, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.slow if torch.is_grad_enabled() else self.fast)(x).relu())

    result = sc.prune(Asks().eval(), torch.randn(3, 6), 0.5)
    assert result.model(torch.randn(2, 6)).shape == (2, 1)
    assert result.model.slow.out_features == result.model.fast.out_features == 8


BUFFERS: dict[str, Callable[[Any, Tensor], Any]] = {
    "assigned": lambda m, aside: setattr(m, "kept", aside),
    "written over": lambda m, aside: m.kept.copy_(aside),
    "in its table": lambda m, aside: m._buffers.__setitem__("kept", aside),
    "a loss": lambda m, aside: m.loss.copy_(aside.square().mean()),
}


@pytest.mark.parametrize("how", BUFFERS)
def test_prune_when_results_stay_in_a_buffer_then_they_keep_their_shape(how: str) -> None:
    def hand(m: Any, out: Tensor, aside: Tensor) -> Tensor:
        BUFFERS[how](m, aside)
        return out

    model = net(hand)
    model.register_buffer("kept", torch.zeros(3, 6))
    model.register_buffer("loss", torch.zeros(()))
    result = sc.prune(model, torch.randn(3, 8), 0.5)
    assert result.model.aside.out_features == 6
    assert result.model.kept.shape == (3, 6)
    assert result.model.first.out_features == 8


REMEMBERED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda out, past: out + past.mean(-1, keepdim=True),
    "softmax": lambda out, past: out + (past.softmax(-1) ** 2).sum(-1, keepdim=True),
    "slice": lambda out, past: out + past[:, :4],
    "view": lambda out, past: out + past.view(len(past), 4, -1).amax(2),
}


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "ran before"])
@pytest.mark.parametrize("read", REMEMBERED)
def test_prune_when_the_second_call_reads_what_the_first_left_then_it_is_compared_too(
    read: str, ran: bool
) -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = (
                nn.Linear(6, 16),
                nn.Linear(16, 16),
                nn.Linear(16, 4),
            )
            self.past: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            past, h = self.past, self.first(x).relu()
            out = self.head(self.second(h).relu())
            self.past = h.detach()
            return out if past is None else out + REMEMBERED[read](out, past)

    torch.manual_seed(0)
    model, x = Stream().eval(), torch.randn(3, 6)
    if ran:
        model(x)
    result = sc.prune(model, x, 0.5)
    assert result.model.second.out_features == 8
    masked = {n: p * result.masks[n] if n in result.masks else p for n, p in state_of(model)}
    dense = Stream().eval()
    dense.load_state_dict(masked)
    result.model.past = None
    with torch.no_grad():
        for _ in range(3):
            assert torch.allclose(dense(x), result.model(x), atol=1e-5)


def state_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p.detach()) for name, p in model.named_parameters()]


def test_analyze_when_a_module_is_unread_then_buffers_keep_no_graph() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head, self.unread = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(2, 2)
            self.register_buffer("mean", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x).relu()
            self.mean.mul_(0.9).add_(h.mean())
            return self.head(h)

    model = Mean().eval()
    sc.analyze(model, torch.randn(3, 6))
    assert not model.mean.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())


def deep(out: Tensor) -> Any:
    for _ in range(900):
        out = [out]  # type: ignore[assignment]
    return out


ODD: dict[str, Callable[[Tensor], Any]] = {
    "sparse": Tensor.to_sparse,
    "compressed": Tensor.to_sparse_csr,
    "quantized": lambda out: torch.quantize_per_tensor(out, 0.1, 0, torch.qint8),
    "deep": deep,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:torch.quantize")
@pytest.mark.parametrize("form", ODD)
def test_prune_when_an_output_is_of_an_odd_form_then_it_is_compared(form: str) -> None:
    result = sc.prune(net(lambda m, out, aside: ODD[form](out)), torch.randn(3, 8), 0.5)
    assert result.verification.passed
    assert result.model.head.out_features == 4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_prune_when_an_output_is_nested_then_the_error_says_what_helps() -> None:
    def nested(m: Any, out: Tensor, aside: Tensor) -> Any:
        return torch.nested.nested_tensor([out[:1], out[1:3]])

    with pytest.raises(sc.errors.TraceError, match="compute with padded ones"):
        sc.prune(net(nested), torch.randn(3, 8), 0.5)
