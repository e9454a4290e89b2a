"""Cutting in place: what changes, what keeps its identity, and how all of it is taken back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import Tensor, nn

from secateur import Plan, Structure, analyze, apply_plan
from secateur.errors import PlanError, ShrinkError, VerificationError
from secateur.shrinking import cut_and_verify, group_masks
from secateur.shrinking.cut import Surgery

EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
HALF = (0, 2, 3, 5)


class Layers(nn.Module):
    """One layer of each kind that describes its own sizes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.depthwise(F.relu(self.norm(self.conv(x)))))
        x = F.relu(self.last(F.relu(self.up(x)))).mean((2, 3))
        return self.out(F.relu(self.fc(x)))


class Heads(nn.Module):
    """Sizes that live in Python: an attribute, a tuple of a split and a list of a view."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.parts = (8, 8)
        self.shape = [-1, 4, 4]
        self.first = nn.Linear(3, 16)
        self.second = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.mean((2, 3)))
        x = x.view(x.shape[0], self.heads, -1).flatten(1)
        a, b = x.split(self.parts, dim=1)
        return self.second(torch.relu(a) * torch.sigmoid(b))


class Stubborn(nn.Module):
    """Forward refuses any other width than the one that it was written for."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if int(x.shape[1]) != 8:
            raise RuntimeError("I want 8 channels")
        return self.head(F.relu(x))


class Sly(Stubborn):
    """Forward computes with the width, in a way that no operation shows."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return self.head(F.relu(x) * (1.0 + 0.1 * float(str(x.shape[1]))))


class Tied(nn.Module):
    """One table for reading and writing, as in a language model."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.embed(x)))


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a cut may change, by value and by identity."""
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = (id(tensor), tensor.detach().clone(), tensor.grad)
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, (int, tuple, list)) and not name.startswith("_"):
                found[f"{path}.{name}"] = (type(value), copy.copy(value))
    return found


def unchanged(before: dict[str, Any], after: dict[str, Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b

    return before.keys() == after.keys() and all(
        equal(a, b) for name in before for a, b in zip(before[name], after[name], strict=True)
    )


def cut(model: nn.Module, structure: Structure, plan: Plan, example: Any = EXAMPLE, **options: Any):
    keeps = {
        name: torch.zeros(structure[name].size, dtype=torch.bool).index_fill(
            0, torch.tensor(kept), True
        )
        for name, kept in plan.keep.items()
    }
    settings = {"notes": [], "verify": True} | options
    masks = group_masks(structure, keeps)
    return cut_and_verify(model, structure, plan, masks, example, **settings)


@pytest.fixture
def made() -> Callable[..., tuple[nn.Module, Structure]]:
    def make(kind: type[nn.Module], example: Any = EXAMPLE) -> tuple[nn.Module, Structure]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind().eval()
        return model, analyze(model, example)

    return make


# what changes


def test_cut_when_layers_describe_themselves_then_their_numbers_are_right(made):
    model, structure = made(Layers)
    plan = Plan({"conv": HALF, "up:1": (1, 2, 4), "last": (0, 3), "fc": (0, 1, 4)})
    cut(model, structure, plan)
    assert (model.conv.in_channels, model.conv.out_channels) == (3, 4)
    assert model.norm.num_features == 4
    assert (model.depthwise.in_channels, model.depthwise.out_channels) == (4, 4)
    assert model.depthwise.groups == 4
    assert model.instance.num_features == 4
    assert (model.up.in_channels, model.up.out_channels) == (4, 3)
    assert (model.last.in_channels, model.last.out_channels) == (3, 2)
    assert (model.fc.in_features, model.fc.out_features) == (2, 3)
    assert (model.out.in_features, model.out.out_features) == (3, 2)
    assert model.norm.running_mean.shape == model.instance.running_var.shape == (4,)


def test_cut_when_positions_are_kept_then_exactly_their_slices_stay(made):
    model, structure = made(Layers)
    dense = copy.deepcopy(model)
    cut(model, structure, Plan({"conv": HALF}))
    kept = torch.tensor(HALF)
    assert torch.equal(model.conv.weight, dense.conv.weight[kept])
    assert torch.equal(model.conv.bias, dense.conv.bias[kept])
    assert torch.equal(model.norm.running_mean, dense.norm.running_mean[kept])
    assert torch.equal(model.up.weight, dense.up.weight[kept])
    assert torch.equal(model.last.weight, dense.last.weight), "nothing of it was cut"


def test_cut_when_sizes_live_in_python_then_the_attributes_follow(made):
    model, structure = made(Heads)
    sized = [g for g in structure.groups if g.sized]
    plan = Plan({group.name: tuple(range(group.size // 2)) for group in sized or structure.groups})
    result = cut(model, structure, plan)
    assert result.attributes
    for name, (before, after) in result.attributes.items():
        assert before > after, name
    assert model.first.out_features < 16
    assert sum(model.parts) == model.first.out_features
    assert type(model.parts) is tuple
    assert model.shape == [-1, 4, 4], "nobody reads it"


def test_cut_when_done_then_parameters_are_the_same_objects_and_of_the_same_class(made):
    model, structure = made(Layers)
    before = {name: id(p) for name, p in model.named_parameters()}
    result = cut(model, structure, Plan({"conv": HALF}))
    assert result.model is model
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert all(type(p) is nn.Parameter and p.is_contiguous() for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_cut_when_weights_are_tied_then_they_stay_tied(made):
    example = torch.arange(10).reshape(2, 5)
    model, structure = made(Tied, example)
    (group,) = structure.groups
    cut(model, structure, Plan({group.name: (1, 2, 6)}), example)
    assert model.head.weight is model.embed.weight
    assert model.embed.weight.shape == (10, 3)
    assert model.embed.embedding_dim == model.head.in_features == 3


def test_cut_when_there_are_gradients_then_they_are_cut_along(made):
    model, structure = made(Layers)
    model(EXAMPLE).sum().backward()
    before = {name: p.grad for name, p in model.named_parameters()}
    cut(model, structure, Plan({"conv": HALF}))
    assert torch.equal(model.conv.weight.grad, before["conv.weight"][list(HALF)])
    assert model.out.weight.grad is before["out.weight"]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(EXAMPLE).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("training", [True, False])
def test_cut_when_some_layers_train_then_every_mode_is_as_before(made, training):
    model, structure = made(Layers)
    model.train(training)
    model.norm.train(not training)
    cut(model, structure, Plan({"conv": HALF}))
    assert model.training is training
    assert model.norm.training is not training


# what is taken back


def test_cut_when_the_smaller_forward_fails_then_the_model_is_as_before(made):
    model, structure = made(Stubborn)
    model(EXAMPLE).sum().backward()
    before = snapshot(model)
    with pytest.raises(ShrinkError, match="does not run: RuntimeError: I want 8 channels"):
        cut(model, structure, Plan({"conv": HALF}))
    assert unchanged(before, snapshot(model))


def test_cut_when_the_smaller_model_differs_then_the_model_is_as_before(made):
    model, structure = made(Sly)
    model(EXAMPLE).sum().backward()
    before = snapshot(model)
    with pytest.raises(VerificationError, match="differs from the masked one by .* every removal"):
        cut(model, structure, Plan({"conv": HALF}))
    assert unchanged(before, snapshot(model))


def test_cut_when_not_verified_then_it_does_not_run_and_says_so(made):
    model, structure = made(Stubborn)
    result = cut(model, structure, Plan({"conv": HALF}), verify=False)
    assert result.verification is None
    assert model.conv.out_channels == 4


def test_cut_when_the_plan_does_not_fit_then_the_model_is_as_before(made):
    model, structure = made(Layers)
    before = snapshot(model)
    with pytest.raises(PlanError):
        cut_and_verify(
            model,
            structure,
            Plan({"conv": (0, 99)}),
            {"conv.weight": torch.zeros(model.conv.weight.shape, dtype=torch.bool)},
            EXAMPLE,
            notes=[],
            verify=True,
        )
    assert unchanged(before, snapshot(model))


@pytest.mark.parametrize("kind", [Layers, Heads])
def test_undo_when_a_cut_is_taken_back_then_everything_is_as_before(made, kind):
    model, structure = made(kind)
    model(EXAMPLE).sum().backward()
    before = snapshot(model)
    keep = {g.name: tuple(range(g.size // 2)) for g in structure.groups if g.size > 1}
    surgery = Surgery(model)
    surgery.mask({"first.weight": torch.zeros(16, 3, dtype=torch.bool)} if kind is Heads else {})
    surgery.cut(structure, Plan(keep))
    assert not unchanged(before, snapshot(model))
    surgery.undo()
    assert unchanged(before, snapshot(model))
    surgery.undo()
    assert unchanged(before, snapshot(model)), "a second time does nothing"


def test_mask_when_applied_then_masked_weights_are_zero_and_others_as_they_were(made):
    model, _ = made(Layers)
    dense = copy.deepcopy(model)
    mask = torch.ones(8, 3, 3, 3, dtype=torch.bool)
    mask[2] = False
    with torch.no_grad():
        model.conv.weight[2, 0, 0, 0] = float("inf")
    Surgery(model).mask({"conv.weight": mask})
    assert (model.conv.weight[2] == 0).all()
    assert torch.equal(model.conv.weight[mask], dense.conv.weight[mask])


class Halves(nn.Module):
    """A split along the last dimension, counted from the end."""

    def __init__(self):
        super().__init__()
        self.parts = (8, 8)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).split(self.parts, -1)
        return self.last(left * right)


def test_cut_when_sizes_are_followed_by_a_negative_dimension_then_each_attribute_follows():
    model, x = Halves(), torch.randn(2, 6)
    structure = analyze(model, x)
    result = cut(model, structure, Plan({"first": (0, 2, 3)}), example=x)
    assert result.model.parts == (3, 3)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.3),
        torch.nn.utils.weight_norm,
        torch.nn.utils.spectral_norm,
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
    ],
    ids=["prune", "weight norm, old", "spectral norm, old", "weight norm", "spectral norm"],
)
def test_cut_when_a_weight_is_made_of_others_then_its_layer_says_its_new_size(wrap):
    model, x = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.zeros(2, 8)
    wrap(model[2])
    model.eval()(x)
    small = apply_plan(model, Plan({"0": range(16)}), x).model
    assert small[2].in_features == small[0].out_features == 16
