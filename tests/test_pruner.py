"""``Pruner`` and ``prune``: from a config to a smaller model, or to an error and no change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.prune import (
    identity,
    l1_unstructured,
    ln_structured,
    random_unstructured,
    remove,
)

import secateur
from secateur import Config, Pruner, analyze, prune, schedules
from secateur.errors import (
    ConfigError,
    CopyError,
    NoMatchError,
    ScoreError,
    ShrinkError,
    TraceError,
    VerificationError,
)
from secateur.scoring.schedules import asked


class Block(nn.Module):
    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """A small residual network of four groups: the trunk, three blocks' inner channels."""

    def __init__(self, channels: int = 32):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList([Block(channels, channels * 3 // 2) for _ in range(3)])
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class Broken(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no forward today")


class Sly(Net):
    """Computes with the width of the stem, in a way that no operation shows."""

    def __init__(self) -> None:
        super().__init__()
        for name in {*dict(self.named_children())} - {"stem", "fc"}:
            delattr(self, name)  # what might feed an unread layer is not cut

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc(x.mean((2, 3)) * (1.0 + 0.1 * x.stride(0) / x.stride(1)))


class Halves(nn.Module):
    """Two layers, in each of which two halves must keep equally many channels."""

    def __init__(self):
        super().__init__()
        self.pairs = nn.ModuleList([nn.Linear(6, 32, bias=False) for _ in range(2)])
        self.left = nn.ModuleList([nn.Linear(16, 6) for _ in range(2)])
        self.right = nn.ModuleList([nn.Linear(16, 6) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for pair, left, right in zip(self.pairs, self.left, self.right, strict=True):
            a, b = pair(x).chunk(2, dim=-1)
            x = x + left(torch.relu(a)) + right(torch.tanh(b))
        return x


EXAMPLE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
INNER = ["blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1"]
ALL = {"stem": 32, **dict.fromkeys(INNER, 48)}


def seeded(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return kind().eval()


@pytest.fixture
def net() -> nn.Module:
    return seeded(Net)


@pytest.fixture
def uneven(net: nn.Module) -> nn.Module:
    """A network in which the weights of the blocks differ by factors."""
    with torch.no_grad():
        for block, scale in zip(net.blocks, (0.3, 1.0, 3.0), strict=True):
            block.conv1.weight.mul_(scale * torch.linspace(0.5, 1.5, 48)[:, None, None, None])
    return net


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(before: dict[str, Tensor], model: nn.Module) -> bool:
    """Whether a model's state is as it was, NaN for NaN."""
    now = model.state_dict()
    return before.keys() == now.keys() and all(
        before[n].shape == now[n].shape
        and torch.allclose(before[n], now[n], rtol=0, atol=0, equal_nan=True)
        for n in before
    )


# one shot


def test_prune_when_called_then_every_group_loses_its_share(net):
    result = prune(net, EXAMPLE, sparsity=0.25)
    assert result.plan.counts == {name: size * 3 // 4 for name, size in ALL.items()}
    assert result.verification is not None
    assert result.verification.passed
    assert result.notes == []


def test_prune_when_called_then_the_model_is_untouched_and_the_result_has_its_class(net):
    before = state(net)
    result = prune(net, EXAMPLE, sparsity=0.5)
    assert same(before, net)
    assert type(result.model) is Net
    assert result.model.stem.out_channels == 16


def test_prune_when_inplace_then_this_very_model_is_smaller(net):
    weight = net.stem.weight
    result = prune(net, EXAMPLE, sparsity=0.5, inplace=True)
    assert result.model is net
    assert net.stem.weight is weight
    assert len(weight) == 16


def test_prune_when_called_twice_then_the_same_positions_go(net):
    for criterion in ("l2", "random"):
        first = prune(net, EXAMPLE, sparsity=0.5, criterion=criterion).plan
        assert first == prune(net, EXAMPLE, sparsity=0.5, criterion=criterion).plan


def test_prune_when_the_seed_differs_then_random_takes_others(net):
    plans = [prune(net, EXAMPLE, 0.5, "random", seed=seed).plan for seed in (0, 1)]
    assert plans[0] != plans[1]


def test_prune_when_the_criterion_is_a_norm_then_the_weakest_channels_go(net):
    weakest = [3, 17, 29]
    with torch.no_grad():
        net.blocks[1].conv1.weight[weakest] *= 0.01
    result = prune(net, EXAMPLE, sparsity=3 / 48, names=["blocks.1.conv1"])
    (kept,) = result.plan.keep.values()
    assert set(range(48)) - set(kept) == set(weakest)


def test_prune_when_a_config_or_a_dict_is_given_then_it_is_the_same_as_settings(net):
    plan = prune(net, EXAMPLE, sparsity=0.5, criterion="l1", exclude=["stem"]).plan
    settings = {"sparsity": 0.5, "criterion": "l1", "exclude": ["stem"]}
    assert prune(net, EXAMPLE, config=Config(**settings)).plan == plan
    assert prune(net, EXAMPLE, config=settings).plan == plan


@pytest.mark.parametrize("setting", [{"sparsity": 0.5}, {"criterion": "l1"}, {"of": "macs"}])
def test_prune_when_a_config_and_single_settings_are_given_then_config_error(net, setting):
    with pytest.raises(ConfigError, match="not both"):
        prune(net, EXAMPLE, config={"sparsity": 0.5}, **setting)


def test_prune_when_the_scope_is_global_then_weak_layers_lose_more(uneven):
    local = prune(uneven, EXAMPLE, 0.5, names=INNER).plan.counts
    overall = prune(uneven, EXAMPLE, 0.5, names=INNER, scope="global", normalize="none").plan.counts
    assert set(local.values()) == {24}
    weak, middle, strong = (overall.get(name, 48) for name in INNER)
    assert weak < middle < strong
    assert weak + middle + strong == sum(local.values())


def test_prune_when_the_ratio_is_one_then_one_channel_stays_and_notes_say_so(net):
    result = prune(net, EXAMPLE, sparsity=1.0)
    assert result.plan.counts == dict.fromkeys(ALL, 1)
    assert [note.partition(":")[0] for note in result.notes] == list(ALL)
    assert all("keeps 1 of" in note and "instead of 0" in note for note in result.notes)
    assert result.model(EXAMPLE).shape == (2, 5)


def test_prune_when_the_ratio_is_zero_then_nothing_goes(net):
    result = prune(net, EXAMPLE, sparsity=0.0)
    assert result.plan.keep == {}
    assert result.after == result.before


def test_prune_when_a_threshold_is_given_then_what_scores_less_goes(net):
    with torch.no_grad():
        net.blocks[0].conv1.weight[:10] *= 1e-3
    result = prune(
        net, EXAMPLE, threshold=0.1, names=["blocks.0.conv1"], granularity="group", normalize="mean"
    )
    assert result.plan.keep == {"blocks.0.conv1": tuple(range(10, 48))}


def test_prune_when_only_a_least_share_is_given_then_it_is_the_goal(net):
    result = prune(net, EXAMPLE, config=Config(min_sparsity=0.25))
    assert result.plan.counts == {name: size * 3 // 4 for name, size in ALL.items()}


def test_prune_when_the_model_has_inexact_groups_then_they_stay_unless_asked_for():
    net = nn.Sequential(
        nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    example = torch.randn(3, 4)
    assert set(prune(net, example, 0.5).plan.keep) == {"2"}
    result = prune(net, example, 0.5, inexact=True)
    assert set(result.plan.keep) == {"0", "2"}
    assert any(note.startswith("inexact: 0:") for note in result.notes)


# budgets and widths


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_prune_when_the_sparsity_is_of_a_cost_then_it_is_met_within_two_points(of, sparsity, scope):
    net = seeded(lambda: Net(96))  # wide: one channel of each group at a time is a small step
    result = prune(net, EXAMPLE, sparsity, of=of, scope=scope)
    gone = 1 - getattr(result.after, of) / getattr(result.before, of)
    assert sparsity <= gone < sparsity + 0.02
    if of == "params":
        count = sum(p.numel() for p in result.model.parameters())
        assert count == result.after.params


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_prune_when_the_network_is_narrow_then_the_cost_is_met_to_one_position(of, sparsity):
    net = seeded(lambda: Net(12))
    result = prune(net, EXAMPLE, sparsity, of=of)
    goal = (1 - sparsity) * getattr(result.before, of)
    assert getattr(result.after, of) <= goal
    for name, count in result.plan.counts.items():  # one position more would have been too much
        one_more = result.structure.cost({**result.plan.counts, name: count + 1})
        if getattr(one_more, of) > goal:
            break
    else:
        pytest.fail(f"any of {list(result.plan.counts)} could have kept one more")


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("of", ["channels", "macs"])
def test_prune_when_widths_are_rounded_then_every_kept_count_is_a_multiple(uneven, scope, of):
    result = prune(uneven, EXAMPLE, 0.4, round_to=8, scope=scope, of=of)
    assert result.plan.counts
    assert all(count % 8 == 0 for count in result.plan.counts.values())


@pytest.mark.parametrize("round_to", [1, 8])
def test_prune_when_uniform_then_groups_of_one_kind_keep_equally_many(uneven, round_to):
    options = {"scope": "global", "normalize": "none", "round_to": round_to}
    free = prune(uneven, EXAMPLE, 0.4, **options).plan.counts
    assert len({free.get(name, 48) for name in INNER}) > 1
    even = prune(uneven, EXAMPLE, 0.4, uniform=True, **options).plan.counts
    assert len({even[name] for name in INNER}) == 1
    assert even[INNER[0]] % round_to == 0
    assert even[INNER[0]] < 48


@pytest.mark.parametrize("uniform", [True, False])
def test_prune_when_groups_must_keep_equally_many_then_they_do(uniform):
    model, example = seeded(Halves), torch.randn(4, 6)
    with torch.no_grad():
        model.pairs[0].weight[:16] *= 0.1
        model.pairs[1].weight *= 2
    pairs = [(g.name, *g.sized) for g in analyze(model, example).groups if g.sized]
    assert len(pairs) == 4
    options = {"scope": "global", "normalize": "none", "uniform": uniform}
    result = prune(model, example, 0.5, **options)
    counts = result.plan.counts
    for family in pairs:
        assert len({counts.get(name, 16) for name in family}) == 1, family
    assert len(set(counts.values())) == (1 if uniform else 2)
    assert result.verification.passed


# selectors


@pytest.mark.parametrize(
    ("selector", "groups"),
    [
        ({"names": ["blocks.1.*"], "exclude": ["*2"]}, ["blocks.1.conv1"]),
        ({"exclude": ["stem"]}, INNER),
        ({"exclude": ["blocks.2.conv2"]}, INNER),
        ({"exclude": ["blocks.0.*"]}, INNER[1:]),
        ({"names": ["blocks.*.conv1"]}, INNER),
        ({"types": ["Conv2d"]}, list(ALL)),
        ({"types": ["Conv2d"], "exclude": ["blocks.?.conv1"]}, ["stem"]),
        ({"exclude": ["fc"]}, list(ALL)),
    ],
    ids=str,
)
def test_prune_when_modules_are_selected_then_only_their_groups_lose_channels(
    net, selector, groups
):
    assert list(prune(net, EXAMPLE, 0.5, **selector).plan.keep) == groups


def test_prune_when_targets_differ_then_each_has_its_own_goal_and_later_ones_win(net):
    config = Config(sparsity=0.5, targets=[{}, {"names": ["blocks.0.conv1"], "sparsity": 0.25}])
    counts = prune(net, EXAMPLE, config=config).plan.counts
    assert counts == {"stem": 16, INNER[0]: 36, INNER[1]: 24, INNER[2]: 24}


@pytest.mark.parametrize(
    ("selector", "hint"),
    [
        (
            {"names": ["blokcs.0.conv1"]},
            "'blokcs.0.conv1' matches none. Did you mean 'blocks.0.conv1'?",
        ),
        ({"types": ["conv2d"]}, "'conv2d' matches none. Did you mean 'Conv2d'?"),
        ({"names": ["fc"]}, "selects nothing that can be pruned"),
        ({"exclude": ["*"]}, "selects nothing that can be pruned"),
    ],
    ids=str,
)
def test_prune_when_a_selector_matches_nothing_then_no_match_error_hints(net, selector, hint):
    before = state(net)
    with pytest.raises(NoMatchError) as caught:
        prune(net, EXAMPLE, 0.5, **selector)
    assert hint in str(caught.value)
    assert same(before, net)


def test_prune_when_several_targets_match_nothing_then_all_are_told(net):
    config = Config(sparsity=0.5, targets=[{"names": ["a"]}, {}, {"types": ["LSTM"]}])
    with pytest.raises(NoMatchError) as caught:
        prune(net, EXAMPLE, config=config)
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith("targets[0] selects nothing")
    assert caught.value.problems[1].startswith("targets[2] selects nothing")


# other granularities


def test_prune_when_the_granularity_is_element_then_the_share_of_each_weight_is_zero(net):
    result = prune(net, EXAMPLE, 0.5, granularity="element", types=["Conv2d", "Linear"])
    assert result.after == result.before, "single weights make no layer smaller"
    for name, weight in result.model.named_parameters():
        if weight.ndim > 1:
            assert int((weight == 0).sum()) == weight.numel() // 2, name


def test_prune_when_the_granularity_is_element_then_norms_keep_their_scales_unless_named(net):
    scale = net.blocks[0].bn1.weight
    with torch.no_grad():
        scale.copy_(torch.linspace(0.5, 1.5, 48))
    free = prune(net, EXAMPLE, 0.5, granularity="element").model
    assert torch.equal(free.blocks[0].bn1.weight, scale)
    named = prune(net, EXAMPLE, 0.5, granularity="element", types=["BatchNorm2d"]).model
    assert torch.equal(named.blocks[0].bn1.weight, scale[24:]), "without a scale it is no channel"


def test_prune_when_the_granularity_is_n_of_m_then_every_run_of_m_has_n_zeros(net):
    result = prune(net, EXAMPLE, granularity="2:4", sparsity=0.5, names=["blocks.*"])
    weight = result.model.blocks[1].conv2.weight
    runs = weight.movedim(1, -1).reshape(-1, 4)
    assert ((runs == 0).sum(1) == 2).all()


def test_prune_when_n_of_m_does_not_fit_a_layer_then_config_error_says_exclude_it(net):
    with pytest.raises(ConfigError, match="dimension 1 must be a multiple of 4; exclude it"):
        prune(net, EXAMPLE, granularity="2:4", sparsity=0.5, types=["Conv2d"])


def test_prune_when_the_granularity_is_out_channel_then_constants_of_norms_are_folded(net):
    with torch.no_grad():
        for block in net.blocks:
            block.bn1.bias.fill_(0.5)
    result = prune(net, EXAMPLE, 0.5, granularity="out_channel", names=["blocks.?.conv1"])
    assert result.plan.counts == dict.fromkeys(INNER, 24)
    assert (
        sum("emitted a constant; it is folded into blocks." in note for note in result.notes) == 3
    )
    assert result.model.blocks[0].conv2.in_channels == 24


def test_prune_when_channels_of_a_residual_are_masked_one_by_one_then_the_rest_is_reported(net):
    result = prune(net, EXAMPLE, 0.5, granularity="out_channel", names=["stem", "blocks.?.conv2"])
    assert any("masked in some slices but not in all" in note for note in result.notes)
    assert len(result.plan.keep.get("stem", range(32))) > 16


# schedules


def by_prune(net: nn.Module, x: Tensor) -> nn.Module:
    return prune(net, x, sparsity=0.5, names=["0"]).model


def by_finish(net: nn.Module, x: Tensor) -> nn.Module:
    pruner = Pruner(net, Config(sparsity=0.5, names=("0",)), x)
    pruner.step()
    return pruner.finish(inplace=False).model


def by_plan(net: nn.Module, x: Tensor) -> nn.Module:
    return secateur.apply_plan(net, secateur.Plan({"0": (0, 1)}), x).model


def by_masks(net: nn.Module, x: Tensor) -> nn.Module:
    mask = torch.ones(16, 8, dtype=torch.bool)
    mask[3:] = False
    return secateur.shrink(net, {"0.weight": mask, "0.bias": mask[:, 0]}, x).model


@pytest.mark.parametrize("way", [by_prune, by_finish, by_plan, by_masks])
def test_copy_when_it_is_trained_then_the_dense_model_is_not(way):
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    x = torch.randn(3, 8)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    small = way(net, x)
    assert small[4].weight.shape == net[4].weight.shape  # what is not cut is a copy, too
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7.0)
    held = dict(net.named_parameters())
    assert all(torch.equal(held[name], value) for name, value in before.items())


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("home", [nn.utils, nn.utils.parametrizations])
def test_step_when_a_weight_is_divided_by_its_norm_then_the_masked_model_is_finite(home, dim):
    norm = home.weight_norm
    net = nn.Sequential(
        norm(nn.Linear(8, 16), dim=dim), nn.ReLU(), norm(nn.Linear(16, 12), dim=dim), nn.ReLU()
    ).append(nn.Linear(12, 4))
    x = torch.randn(4, 8)
    pruner = Pruner(net, Config(sparsity=0.5), x)
    pruner.step()
    masked = net(x)
    masked.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
    result = pruner.finish(inplace=False)
    torch.testing.assert_close(result.model(x), masked)
    assert result.after.params < result.before.params / 2


@pytest.mark.parametrize("schedule", list(schedules))
def test_step_when_a_schedule_ends_then_the_goal_is_reached(net, schedule):
    config = Config(sparsity=0.5, schedule=schedule, steps=4)
    pruner = Pruner(net, config, EXAMPLE)
    shares = [pruner.step()["sparsity"] for _ in range(4)]
    assert shares == sorted(shares)
    assert shares[-1] == 0.5
    expected = [asked(schedule, 0.5, schedules[schedule](k / 4)) for k in (1, 2, 3, 4)]
    assert shares == pytest.approx(expected, abs=1 / 48)
    assert pruner.finish().plan.counts == {name: size // 2 for name, size in ALL.items()}


def test_step_when_only_every_third_call_prunes_then_the_others_keep_the_masks(net):
    config = Config(sparsity=0.5, schedule="linear", steps=2, every=3)
    pruner = Pruner(net, config, EXAMPLE)
    metrics = [pruner.step() for _ in range(8)]
    assert [m["sparsity"] for m in metrics] == [0, 0, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5]
    assert [m["pruning_step"] for m in metrics] == [0, 0, 1, 1, 1, 2, 2, 2]


def test_step_when_the_goal_is_reached_then_more_calls_change_no_mask(net):
    pruner = Pruner(net, Config(sparsity=0.5), EXAMPLE)
    pruner.step()
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    with torch.no_grad():
        dict(net.named_parameters())["stem.weight"].mul_(-3).add_(0.1)
    pruner.step()
    assert masks.keys() == pruner.masks.keys()
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in masks.items())
    assert (net.state_dict()["stem.weight"][~masks["stem.weight"]] == 0).all()


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_step_when_called_after_the_optimizer_then_masked_weights_stay_zero(net, optimizer):
    config = Config(sparsity=0.5, schedule="cubic", steps=3, every=2)
    pruner = Pruner(net, config, EXAMPLE)
    net.train()
    optimiser = optimizer(net.parameters(), lr=1e-2, weight_decay=1e-3)
    parameters = {name: id(p) for name, p in net.named_parameters()}
    for _ in range(9):
        optimiser.zero_grad()
        F.cross_entropy(net(EXAMPLE), torch.tensor([1, 3])).backward()
        optimiser.step()
        pruner.step()
        for name, mask in pruner.masks.items():
            assert (net.state_dict()[name][~mask] == 0).all(), name
    assert net.training
    assert {name: id(p) for name, p in net.named_parameters()} == parameters
    net.eval()
    expected = net(EXAMPLE)
    result = pruner.finish()
    assert result.plan.counts == {name: size // 2 for name, size in ALL.items()}
    torch.testing.assert_close(result.model(EXAMPLE), expected, rtol=1e-5, atol=1e-6)


def test_step_when_masks_are_made_then_they_cover_every_slice_of_a_group(net):
    pruner = Pruner(net, Config(sparsity=0.5, names=["stem"]), EXAMPLE)
    pruner.step()
    gone = ~pruner.keeps["stem"]
    for name in (
        "stem.weight",
        "blocks.1.conv2.weight",
        "blocks.1.bn2.weight",
        "blocks.1.bn2.bias",
    ):
        assert not pruner.masks[name][gone].any(), name
    for name in ("blocks.0.conv1.weight", "fc.weight"):
        assert not pruner.masks[name][:, gone].any(), name


def test_finish_when_nothing_was_pruned_then_config_error(net):
    pruner = Pruner(net, Config(sparsity=0.5, every=5), EXAMPLE)
    pruner.step()
    with pytest.raises(ConfigError, match="call step"):
        pruner.finish()


def test_finish_when_not_inplace_then_training_can_go_on(net):
    pruner = Pruner(net, Config(sparsity=0.5, schedule="linear", steps=2), EXAMPLE)
    pruner.step()
    early = pruner.finish(inplace=False)
    assert early.model is not net
    assert net.stem.out_channels == 32
    pruner.step()
    assert pruner.finish().after.params < early.after.params


# what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "needs sparsity"),
        ({"sparsity": 0.5, "config": Config(sparsity=0.5)}, "not both"),
        ({"sparsity": 0.5, "schedule": "linear", "steps": 3}, "use Pruner in your loop"),
        ({"sparsity": 50}, "Did you mean 0.5?"),
        ({"sparsity": 0.5, "criterion": "tailor"}, "unknown criterion 'tailor'"),
        ({"sparsity": 0.5, "round_too": 8}, "unknown key 'round_too'. Did you mean 'round_to'?"),
        ({"sparsity": 0.5, "of": "macs", "granularity": "element"}, "needs granularity 'group'"),
        ({"threshold": 0.5, "of": "params"}, "needs a sparsity, not a threshold"),
        ({"sparsity": 0.5, "method": "movement"}, "learns from training: use Pruner in your loop"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "needs gradients"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_prune_when_settings_are_wrong_then_config_error_and_the_model_is_untouched(
    net, call, words
):
    before = state(net)
    with pytest.raises(ConfigError) as caught:
        prune(net, EXAMPLE, **call)
    assert words in str(caught.value)
    assert same(before, net)


def test_pruner_when_a_budget_has_several_shares_then_config_error(net):
    config = Config(sparsity=0.5, of="macs", targets=[{}, {"names": ["stem"], "sparsity": 0.2}])
    with pytest.raises(ConfigError, match="needs one sparsity for all targets"):
        Pruner(net, config, EXAMPLE)


def test_pruner_when_a_target_has_no_goal_then_config_error_names_it(net):
    with pytest.raises(ConfigError, match=r"targets\[1\] has no goal"):
        Pruner(net, Config(targets=[{"sparsity": 0.5}, {"names": ["stem"]}]), EXAMPLE)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_prune_when_a_weight_is_not_finite_then_score_error_and_the_model_is_untouched(
    net, value, inplace
):
    with torch.no_grad():
        net.blocks[2].conv1.weight[4, 0, 0, 0] = value
    before = state(net)
    with pytest.raises(ScoreError, match=r"'blocks.2.conv1.weight' has weights that are NaN"):
        prune(net, EXAMPLE, 0.5, inplace=inplace)
    assert same(before, net)


def test_step_when_a_weight_becomes_nan_then_score_error_and_the_masks_are_as_before(net):
    pruner = Pruner(net, Config(sparsity=0.5, schedule="linear", steps=2), EXAMPLE)
    pruner.step()
    masks = pruner.masks
    with torch.no_grad():
        dict(net.named_parameters())["stem.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ScoreError):
        pruner.step()
    assert pruner.masks is masks
    assert pruner.updates == 1
    with torch.no_grad():
        dict(net.named_parameters())["stem.weight"][0, 0, 0, 0] = 1.0
    assert pruner.step()["sparsity"] == 0.5


@pytest.mark.parametrize("inplace", [True, False])
def test_prune_when_the_forward_fails_then_trace_error_and_the_model_is_untouched(inplace):
    model = seeded(Broken).train()
    before = state(model)
    with pytest.raises(TraceError, match="no forward today"):
        prune(model, EXAMPLE, 0.5, inplace=inplace)
    assert same(before, model)
    assert model.training


def test_prune_when_the_example_does_not_fit_then_trace_error_tells_its_shape(net):
    with pytest.raises(TraceError, match=r"\(2, 4, 8, 8\)"):
        prune(net, torch.zeros(2, 4, 8, 8), 0.5)


def test_prune_when_the_cut_fails_inplace_then_weights_and_shapes_are_restored():
    model = seeded(Sly)
    before = state(model)
    identities = [id(p) for p in model.parameters()]
    with pytest.raises(VerificationError):
        prune(model, EXAMPLE, 0.5, inplace=True)
    assert same(before, model)
    assert [id(p) for p in model.parameters()] == identities
    assert model.stem.out_channels == 32


def test_finish_when_the_cut_fails_then_the_masked_model_is_as_before():
    model = seeded(Sly)
    pruner = Pruner(model, Config(sparsity=0.5), EXAMPLE)
    pruner.step()
    before = state(model)
    with pytest.raises(ShrinkError):
        pruner.finish()
    assert same(before, model)


def test_prune_when_the_model_is_shared_then_analysis_can_be_reused(net):
    structure = secateur.analyze(net, EXAMPLE)
    twin = copy.deepcopy(net)
    pruner = Pruner(twin, Config(sparsity=0.5), EXAMPLE, structure=structure)
    pruner.step()
    assert pruner.finish().plan == prune(net, EXAMPLE, 0.5).plan


def test_step_when_it_prunes_then_the_log_has_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    pruner = Pruner(
        net, Config(sparsity=0.5, schedule="linear", steps=2, every=2), torch.zeros(1, 4)
    )
    with caplog.at_level("INFO", logger="secateur"):
        for _ in range(5):
            pruner.step()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(", scores")[0] for line in lines] == [
        "step 2: 50.0% of the goal, 25.0% masked",
        "step 4: 100.0% of the goal, 50.0% masked",
    ]


def test_pruner_when_its_model_was_cut_then_what_follows_says_so_and_metrics_stay():
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    pruner = Pruner(net, Config(sparsity=0.5, steps=2), torch.zeros(1, 8))
    pruner.step()
    pruner.finish()
    width = net[0].out_features
    for again in (pruner.step, pruner.finish, pruner.decide):
        with pytest.raises(ConfigError, match=r"'0\.weight' is \(.*a new Pruner"):
            again()
    assert net[0].out_features == width < 32
    assert net(torch.zeros(1, 8)).shape == (1, 4)


@pytest.mark.parametrize(
    "goal", [{"sparsity": 0.5}, {"sparsity": 0.5, "of": "macs"}, {"budget": "220 params"}]
)
def test_finish_when_the_schedule_is_not_over_then_the_first_warning_says_so(goal):
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    pruner = Pruner(net, Config(schedule="cubic", steps=4, **goal), torch.zeros(4, 8))
    pruner.step()
    early = pruner.finish(inplace=False)
    assert "after 1 of 4 pruning steps" in early.warnings[0]
    assert not any(reached.met for reached in early.goals)
    for _ in range(3):
        pruner.step()
    late = pruner.finish()
    assert not late.warnings
    assert all(reached.met for reached in late.goals)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("granularity", ["2:4", "1:4", "balanced:1,4"])
def test_prune_when_masks_make_a_pattern_then_no_row_or_column_goes(seed, granularity):
    torch.manual_seed(seed)
    layers = nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    net = nn.Sequential(*layers).eval()
    goal = {"sparsity": 0.5} if granularity.startswith("balanced") else {}
    result = prune(net, torch.randn(4, 8), criterion="magnitude", granularity=granularity, **goal)
    assert result.unchanged
    kept = 3 if granularity == "1:4" else 2
    for layer in result.model[::2]:
        assert ((layer.weight != 0).view(len(layer.weight), -1, 4).sum(-1) <= kept).all()


def test_prune_when_groups_go_beside_a_pattern_then_only_these_are_cut():
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    targets = [
        {"names": ["0"], "sparsity": 0.5},
        {"names": ["4"], "granularity": "2:4", "criterion": "magnitude"},
    ]
    result = prune(net.eval(), torch.randn(4, 8), config=Config(targets=targets))
    assert result.plan.counts == {"0": 16}
    assert result.verification.passed
    assert ((result.model[4].weight != 0).view(4, -1, 4).sum(-1) == 2).all()


@pytest.mark.parametrize("setting", [{"start": 3}, {"every": 2}])
def test_prune_when_a_setting_is_of_a_schedule_then_config_error_names_it(setting):
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} say nothing"):
        prune(net, torch.zeros(1, 8), 0.5, **setting)


@pytest.mark.parametrize("method", [None, "movement", "group_lasso"])
def test_pruner_when_it_is_copied_or_pickled_then_it_says_what_to_take_instead(method):
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    pruner = Pruner(net, Config(sparsity=0.5, method=method), torch.zeros(1, 8))
    for take in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(CopyError, match="state_dict"):
            take(pruner)


def test_finish_when_a_state_of_before_the_goal_was_loaded_then_it_says_that_it_is_early():
    def made() -> Pruner:
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        return Pruner(net, Config(sparsity=0.5, schedule="cubic", steps=2), torch.zeros(1, 8))

    pruner = made()
    pruner.step()
    early = pruner.state_dict()
    pruner.step()
    late = pruner.state_dict()
    pruner.load_state_dict(early)
    assert "after 1 of 2" in pruner.finish().warnings[0]
    for state in (late, {k: v for k, v in late.items() if k != "whole"}):
        other = made()
        other.load_state_dict(state)
        assert not other.finish().warnings


def test_load_when_the_state_is_of_another_type_then_config_error_names_both():
    def made() -> Pruner:
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        return Pruner(net, Config(sparsity=0.5), torch.zeros(1, 8))

    pruner, other = made(), made()
    pruner.step()
    pruner.model.half()
    with pytest.raises(ConfigError, match=r"in float16, and '0\.weight' is in float32 here"):
        other.load_state_dict(pruner.state_dict())
    assert not other.keeps


def _two_heads() -> tuple[nn.Module, nn.Module]:
    shared = nn.Linear(6, 16)
    return tuple(nn.Sequential(shared, nn.ReLU(), nn.Linear(16, 4)) for _ in range(2))  # type: ignore[return-value]


def _one_twice() -> tuple[nn.Module, nn.Module]:
    model = _two_heads()[0]
    return model, model


@pytest.mark.parametrize("models", [_two_heads, _one_twice])
@pytest.mark.parametrize("first", [0, 1])
def test_step_when_another_pruner_has_masks_on_a_shared_module_then_it_is_refused(models, first):
    x = torch.randn(8, 6)
    made = [Pruner(model, {"sparsity": 0.5}, x) for model in models()]
    one, other = made[first], made[1 - first]
    one.step()
    before = {name: mask.clone() for name, mask in one.masks.items()}
    out = one.model(x)
    for refused in (other.step, other.decide):
        with pytest.raises(ConfigError, match=r"0\.weight.* not of this pruner"):
            refused()
    assert other.calls == 0
    assert torch.equal(one.model(x), out)
    one.step()  # it goes on
    assert all(torch.equal(mask, one.masks[name]) for name, mask in before.items())
    assert one.finish().verification.passed


def test_step_when_a_state_was_loaded_then_its_masks_are_its_own():
    model, x = _two_heads()[0], torch.randn(8, 6)
    config = {"sparsity": 0.5, "schedule": "linear", "steps": 2}
    pruner = Pruner(model, config, x)
    pruner.step()
    again = Pruner(_two_heads()[0], config, x)
    again.load_state_dict(pruner.state_dict())
    assert again.step()["sparsity"] == 0.5


@pytest.mark.parametrize("how", [l1_unstructured, ln_structured, random_unstructured, identity])
def test_pruner_when_torch_has_masks_on_then_they_are_to_be_removed_first(how):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    options = {"n": 2, "dim": 0} if how is ln_structured else {}
    how(net[0], "weight", **options, **({} if how is identity else {"amount": 0.5}))
    with pytest.raises(ConfigError, match=r"'0.weight' has a mask of torch.nn.utils.prune"):
        secateur.prune(net, torch.randn(2, 4), 0.5)
    remove(net[0], "weight")
    assert secateur.prune(net, torch.randn(2, 4), 0.5).model[0].out_features == 4
