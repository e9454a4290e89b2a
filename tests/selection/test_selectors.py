"""Words that select nothing are an error; what is excluded is left alone with all that is in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import GoalError, NoMatchError
from secateur.graph.groups import Group

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A backbone in a container, a norm, a recurrent layer, a shared head, a bare parameter."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
        self.norm = nn.LayerNorm(12)
        self.rnn = nn.LSTM(12, 10, batch_first=True)
        self.head = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4))
        self.alias = self.head
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        first, act, *rest = self.backbone
        x = nn.Sequential(act, *rest)(first(x) * self.scale)
        return self.head(self.rnn(self.norm(x)[:, None])[0][:, 0])


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


MISSPELT: dict[str, tuple[dict[str, Any], str]] = {
    "exclude": ({"exclude": ["bakbone"]}, "'bakbone' matches none. Did you mean 'backbone'"),
    "inside": ({"exclude": ["backbone.9"]}, "'backbone.9' matches none. Did you mean 'backbone."),
    "wildcard": ({"exclude": ["bakbone.*"]}, "Did you mean 'backbone.*'"),
    "deep": ({"exclude": ["*.0.weigt"]}, "Did you mean '*.0.weight'"),
    "anywhere": ({"exclude": ["*bakbone*"]}, "Did you mean '*backbone*'"),
    "one of two": ({"exclude": ["backbone", "hed"]}, "'hed' matches none. Did you mean 'head'"),
    "type": ({"exclude_types": ["Linaer"]}, "'Linaer' matches none. Did you mean 'Linear'"),
    "case": ({"exclude_types": ["lstm"]}, "Did you mean 'LSTM'"),
    "absent": ({"exclude": ["zzz"]}, "exclude: 'zzz' matches none"),
    "swapped": ({"exclude": ["Linear"]}, "It is for 'exclude_types'"),
    "swapped back": ({"exclude_types": ["rnn"]}, "It is for 'exclude'"),
    "parameter": ({"exclude": ["scael"]}, "Did you mean 'scale'"),
    "names": ({"names": ["backbone.0", "backbon.2"]}, "names: 'backbon.2' matches none"),
    "types": ({"types": ["Linear", "Liner"]}, "types: 'Liner' matches none. Did you mean 'Linear'"),
    "target": ({"targets": [{}, {"exclude": ["hedd"]}]}, "targets[1] has a word that selects"),
    "element": ({"granularity": "element", "exclude": ["hedd"]}, "Did you mean 'head'"),
    "which": ({"granularity": "element", "parameters": ["weigth"]}, "Did you mean 'weight'"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), MISSPELT.values(), ids=MISSPELT)
def test_prune_when_a_word_matches_nothing_then_no_match_error_names_the_nearest(
    net, settings, said
):
    with pytest.raises(NoMatchError) as caught:
        sc.prune(net, X, sparsity=0.5, **settings)
    assert said in str(caught.value)


def made_by(group: Group) -> set[str]:
    return {m.tensor for m in group.members if m.role == "out"}


@pytest.mark.parametrize(
    ("exclusion", "kept"),
    [
        ({"exclude": ["backbone"]}, "backbone."),
        ({"exclude": ["backb*"]}, "backbone."),
        ({"exclude": ["alias"]}, "head."),  # the other name of one module
        ({"exclude": ["alias.0"]}, "head.0."),
        ({"exclude": ["rnn"]}, "rnn."),
        ({"exclude": ["head.0.weight"]}, "head.0."),
        ({"exclude": ["scale"]}, "scale"),
        ({"exclude_types": ["LSTM"]}, "rnn."),
        ({"exclude_types": ["Sequential"]}, ("backbone.", "head.")),
    ],
    ids=str,
)
@pytest.mark.parametrize("granularity", ["group", "element"])
def test_prune_when_something_is_excluded_then_all_in_it_stays(net, exclusion, kept, granularity):
    which = {} if granularity == "group" else {"parameters": ["weight", "weight_hh_l0"]}
    result = sc.prune(net, X, 0.5, granularity=granularity, **which, **exclusion)
    if granularity == "group":
        made = {tensor for name in result.plan.keep for tensor in made_by(result.structure[name])}
    else:
        made = {name for name, mask in result.masks.items() if not bool(mask.all())}
    assert made
    assert not [tensor for tensor in made if tensor.startswith(kept)]


@torch.library.custom_op("secateur_tests::odd", mutates_args=())
def odd(x: Tensor) -> Tensor:
    return x.clone()


@odd.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(odd(self.a(x)))


class Normed(nn.Module):
    """What may go is read by a norm, so that all of it is inexact."""

    def __init__(self):
        super().__init__()
        self.rnn, self.norm, self.out = nn.LSTM(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.rnn(x[None])[0][0]))


@pytest.mark.parametrize(
    ("model", "settings", "said"),
    [
        (Unknown, {}, ["frozen 'a' (16): secateur_tests.odd", "no rule knows"]),
        (Normed, {}, ["inexact=True would allow", "in 'norm'"]),
        (Net, {"names": ["head.2"]}, ["frozen 'head.2' (4): it is the model's output", "addmm"]),
        (Net, {"names": ["norm"]}, ["inexact=True would allow 'backbone.2' (12)", "in 'norm'"]),
        (Net, {"names": ["backbone"]}, ["'backbone' holds layers and no weights: say 'backbone.*"]),
        (Net, {"names": ["backbone.0"], "exclude": ["scale"]}, ["'backbone.0' (16): 'scale' is"]),
        (Net, {"granularity": "in_channel", "names": ["norm"]}, ["'weight'", "two dimensions"]),
        (Net, {"granularity": "element", "names": ["rnn"]}, ["no parameter 'weight'"]),
    ],
    ids=["unknown", "inexact", "output", "norm", "container", "excluded", "no matrix", "no such"],
)  # fmt: skip
def test_prune_when_nothing_can_go_then_no_match_error_says_why(model, settings, said):
    with pytest.raises(NoMatchError, match="selects nothing that can be pruned") as caught:
        sc.prune(model(), X, sparsity=0.5, **settings)
    for words in said:
        assert words in str(caught.value)


class Sized(nn.Module):
    """Two layers whose widths are one attribute."""

    def __init__(self):
        super().__init__()
        self.width = 16
        self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 16)
        self.c, self.d = nn.Linear(16, 4), nn.Linear(16, 4)
        self.free, self.last = nn.Linear(8, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (f(x).view(-1, self.width).relu() for f in (self.a, self.b))
        return self.c(a) + self.d(b) + self.last(self.free(x).relu())


def test_prune_when_a_mate_lies_outside_the_target_then_it_is_named():
    torch.manual_seed(0)
    with pytest.raises(GoalError, match="a: stays whole, as it must keep as many positions as 'b'"):
        sc.prune(Sized(), X, sparsity=0.5, names=["a"])
    result = sc.prune(Sized(), X, sparsity=0.5, names=["a", "free"])
    assert result.plan.counts == {"free": 10}
    assert any("a: stays whole" in note and "'b'" in note for note in result.notes)
    assert sc.prune(Sized(), X, sparsity=0.5, names=["a", "b"]).plan.counts == {"a": 8, "b": 8}
