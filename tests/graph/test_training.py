"""What only training reads: auxiliary heads, and modules that no forward reaches at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur import Config, Pruner, analyze, prune, shrink
from tests import zoo


def pictures(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Backbone(nn.Module):
    """Two convolutions and a head; ``more(model, first features, second)`` runs in training."""

    def __init__(self, more: Callable[..., Any], **held: nn.Module | nn.Parameter):
        super().__init__()
        self.more = more
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.second, self.head = nn.Conv2d(8, 12, 3), nn.Linear(12, 4)
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        a = self.norm(self.first(x)).relu()
        b = self.second(a).relu()
        out = self.head(b.mean((2, 3)))
        return (out, self.more(self, a, b)) if self.training else out


def auxiliary(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return m.aux(a.mean((2, 3)))


def deep(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return m.aux(m.squeeze(a).relu().flatten(1))


def supervised(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return m.aux(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))


def token(m: Any, a: Tensor, b: Tensor) -> Tensor:
    drop = torch.rand(len(b), 1, *b.shape[2:]) < 0.5
    return torch.where(drop, m.token[:, None, None], b).sum()


def noisy(m: Any, a: Tensor, b: Tensor) -> Tensor:
    return m.aux(m.drops(b + torch.randn_like(b)).mean((2, 3)))


DROPS = (nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout())
READ_IN_TRAINING = {
    "head": lambda: Backbone(auxiliary, aux=nn.Linear(8, 4)),
    "deep": lambda: Backbone(
        deep, squeeze=nn.Sequential(nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)), aux=nn.Linear(6 * 36, 4)
    ),
    "both-features": lambda: Backbone(supervised, aux=nn.Linear(20, 4)),
    "token": lambda: Backbone(token, token=nn.Parameter(torch.randn(12))),
    "dropout": lambda: Backbone(noisy, aux=nn.Linear(12, 4), drops=nn.Sequential(*DROPS)),
}


def is_trained(model: nn.Module, x: Tensor) -> bool:
    """Run a step of training, in which every parameter gets a gradient."""
    model.train()
    out = model(x)
    sum(part.float().square().mean() for part in out).backward()
    return all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("make", READ_IN_TRAINING.values(), ids=READ_IN_TRAINING)
def test_head_when_only_training_reads_it_then_the_smaller_model_trains(make):
    model = make().eval()
    result = prune(model, pictures(), sparsity=0.5)
    assert result.model.first.out_channels == 4
    assert result.model.second.out_channels == 6
    assert result.structure.unread == ()
    assert not result.notes
    assert is_trained(result.model, pictures())


@pytest.mark.parametrize("make", READ_IN_TRAINING.values(), ids=READ_IN_TRAINING)
def test_training_when_it_is_recorded_then_the_model_is_as_before(make):
    model = make()
    model.norm.eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    analyze(model, pictures())
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_head_when_only_training_reads_it_then_its_own_width_stays_and_says_why():
    model = READ_IN_TRAINING["deep"]()
    structure = analyze(model, pictures())
    members = {(m.tensor, m.dim) for m in structure["first"].members}
    assert ("squeeze.0.weight", 1) in members
    assert "only training reads it" in structure["squeeze.0"].frozen.why
    assert {g.name for g in structure.exact} == {"first", "second"}


def test_head_when_masks_are_made_by_a_pruner_then_it_loses_the_same_channels():
    model = READ_IN_TRAINING["deep"]().eval()
    pruner = Pruner(
        model, Config(criterion="l1", sparsity=0.5, steps=2, schedule="linear"), pictures()
    )
    for _ in range(2):
        assert is_trained(model, pictures())
        pruner.step()
    small = pruner.finish().model
    assert small.squeeze[0].in_channels == 4
    assert is_trained(small, pictures())


def test_shrink_when_masks_know_nothing_of_the_head_then_it_follows():
    model = READ_IN_TRAINING["head"]().eval()
    mask = torch.ones_like(model.first.weight, dtype=torch.bool)
    mask[:3] = False
    small = shrink(model, {"first.weight": mask}, pictures()).model
    assert small.aux.in_features == 5
    assert is_trained(small, pictures())


@pytest.mark.parametrize("example", [1, 3], ids=["one-example", "targets"])
def test_training_when_its_forward_fails_then_that_is_said_and_what_may_feed_the_rest_stays(
    example,
):
    def more(m: Any, a: Tensor, b: Tensor, targets: Tensor | None = None) -> Tensor:
        if example > 1 and targets is None:
            raise ValueError("targets should not be None")
        return m.aux(m.normed(a.mean((2, 3))))

    model = Backbone(more, normed=nn.BatchNorm1d(8), aux=nn.Linear(8, 4)).eval()
    result = prune(model, pictures(example), sparsity=0.5)
    assert ("targets" if example > 1 else "more than 1 value per channel") in result.notes[0]
    assert "normed.weight" in result.notes[1]
    assert result.model.first.out_channels == 8
    assert result.model.second.out_channels == 6
    assert is_trained_with(result.model, lambda m, a: m.aux(a.mean((2, 3))))


def is_trained_with(model: Any, read: Callable[[Any, Tensor], Tensor]) -> bool:
    return bool(read(model, model.first(pictures())).isfinite().all())


UNSEEN = {
    "linear-on-the-mean": (nn.Linear(8, 2), "first", lambda m, a, b: m.other(a.mean((2, 3)))),
    "convolution": (nn.Conv2d(12, 2, 1), "second", lambda m, a, b: m.other(b)),
    "transposed": (nn.ConvTranspose2d(12, 8, 2), "second", lambda m, a, b: m.other(b)),
    "flattened": (nn.Linear(12 * 16, 2), "second", lambda m, a, b: m.other(b.flatten(1))),
    "norm": (nn.BatchNorm2d(8), "first", lambda m, a, b: m.other(a)),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), "first", lambda m, a, b: m.other(a)),
    "several-layers": (
        nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3)),
        "first",
        lambda m, a, b: m.other(a.mean((2, 3))),
    ),
}


@pytest.mark.parametrize(("other", "feed", "run"), UNSEEN.values(), ids=UNSEEN)
def test_module_when_no_forward_reads_it_then_what_may_feed_it_stays(other, feed, run):
    model = Backbone(lambda *_: torch.zeros(()), other=copy.deepcopy(other)).eval()
    result = prune(model, pictures(), sparsity=0.5)
    assert "may feed 'other'" in result.structure[feed].frozen.why
    assert any("other." in note for note in result.notes)
    assert len(result.plan.keep) == 1, "what cannot feed it goes"
    a = result.model.norm(result.model.first(pictures())).relu()
    run(result.model, a, result.model.second(a).relu())


def test_parameter_when_its_module_is_read_otherwise_then_it_is_named_and_nothing_more():
    model = Backbone(lambda *_: torch.zeros(()))
    model.second.register_parameter("extra", nn.Parameter(torch.randn(12)))
    structure = analyze(model.eval(), pictures())
    assert structure.unread == ("second.extra",)
    assert "second.extra" in str(structure)
    assert {g.name for g in structure.exact} == {"first", "second"}


@pytest.mark.parametrize(
    ("name", "side"), [("googlenet", 64), pytest.param("inception_v3", 299, marks=pytest.mark.slow)]
)
def test_torchvision_when_its_auxiliary_heads_are_on_then_it_trains_after_pruning(name, side):
    torch.manual_seed(0)
    make = getattr(zoo.torchvision_models(), name)
    model = make(aux_logits=True, init_weights=False, weights=None).eval()
    x = torch.randn(2, 3, side, side)
    structure = analyze(model, x)
    assert structure.unread == ()
    pruner = Pruner(model, Config(criterion="l2", sparsity=0.5), x, structure=structure)
    pruner.step()
    small = pruner.finish().model
    assert sum(p.numel() for p in small.parameters()) < 0.7 * structure.cost().params
    assert is_trained(small, x)
    assert secateur.analyze(small, x).unread == ()
