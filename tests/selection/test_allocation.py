"""Shares that are said of single groups or tensors."""

import copy
import json

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ConfigError, NoMatchError
from secateur.pruner import Pruner
from secateur.selection.allocation import shares


class Net(nn.Module):
    """Three layers with widths of their own, and a residual stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 12)
        self.up = nn.Linear(12, 20)
        self.down = nn.Linear(20, 12)
        self.wide = nn.Linear(12, 30)
        self.head = nn.Linear(30, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.down(self.up(x).relu())
        return self.head(self.wide(x).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


X = torch.zeros(2, 6)


def kept(result):
    return {g.name: result.plan.counts.get(g.name, g.size) for g in result.structure.groups}


def test_prune_when_some_groups_have_shares_then_the_others_take_the_sparsity(net):
    found = kept(sc.prune(net, X, sparsity=0.5, allocation={"up": 0.9, "wide": 0.0}))
    assert found == {"stem": 6, "up": 2, "wide": 30}


@pytest.mark.parametrize("scope", ["local", "global"])
def test_prune_when_there_is_no_sparsity_then_what_is_not_named_stays_whole(net, scope):
    found = kept(sc.prune(net, X, allocation={"u*": 0.25}, scope=scope))
    assert found == {"stem": 12, "up": 15, "wide": 30}


def test_prune_when_all_are_in_one_ranking_then_named_ones_leave_it(net):
    found = kept(sc.prune(net, X, sparsity=0.5, scope="global", allocation={"up": 0.1}))
    assert found["up"] == 18
    assert sum(found.values()) == 18 + (12 + 30) // 2


@pytest.mark.parametrize("granularity", ["element", "out_channel", "in_channel"])
def test_prune_when_tensors_are_named_then_each_has_its_share(net, granularity):
    config = sc.Config(
        granularity=granularity, allocation={"*": 0.5, "up.weight": 0.25, "head.weight": 0}
    )
    pruner = Pruner(net, config, X)
    pruner.decide()
    gone = {name: 1 - float(keep.float().mean()) for name, keep in pruner.keeps.items()}
    assert gone["up.weight"] == pytest.approx(0.25, abs=0.05)
    assert gone["head.weight"] == 0
    assert gone["wide.weight"] == 0.5


def test_shares_when_several_words_match_then_the_name_itself_and_else_the_last_counts():
    said = {"layer1.0": 0.1, "layer*": 0.2, "layer1.*": 0.3}
    assert shares(said, ["layer1.0", "layer1.1", "layer2.0", "stem"]) == {
        "layer1.0": 0.1,
        "layer1.1": 0.3,
        "layer2.0": 0.2,
    }


@pytest.mark.parametrize("of", ["params", "macs"])
def test_prune_when_a_budget_is_beside_it_then_the_rest_meets_the_budget(net, of):
    result = sc.prune(net, X, sparsity=0.4, of=of, allocation={"wide": 0.1})
    assert kept(result)["wide"] == 27
    before, after = getattr(result.before, of), getattr(result.after, of)
    assert 0.5 * before < after <= 0.6 * before


@pytest.mark.parametrize("allocation", [{"*": 0.5}, {"stem": 0.1, "up": 0.1, "wide": 0.1}])
def test_prune_when_all_is_named_then_a_budget_beside_it_is_refused(net, allocation):
    with pytest.raises(ConfigError, match="names all that could meet the goal"):
        sc.prune(net, X, sparsity=0.4, of="macs", allocation=allocation)


def test_prune_when_a_budget_has_only_an_allocation_then_it_is_refused(net):
    with pytest.raises(ConfigError, match="needs a sparsity"):
        sc.prune(net, X, of="macs", allocation={"up": 0.5})


class Tied(nn.Module):
    """Two branches that the code says are equally wide."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(6, 16)
        self.a, self.b = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        a, b = self.both(x).relu().chunk(2, -1)
        return self.a(a) + self.b(b)


def test_prune_when_one_of_a_family_is_named_then_its_mates_follow():
    structure = sc.analyze(Tied(), X)
    one, other = (group.name for group in structure.groups)
    found = kept(sc.prune(Tied().eval(), X, allocation={one: 0.5}))
    assert found == {one: 4, other: 4}


def test_prune_when_mates_have_other_shares_then_it_says_so():
    one, other = (group.name for group in sc.analyze(Tied(), X).groups)
    with pytest.raises(ConfigError, match="must keep equally many"):
        sc.prune(Tied(), X, allocation={one: 0.5, other: 0.25})


@pytest.mark.parametrize(
    ("allocation", "said"),
    [
        ({"upp": 0.5}, "Did you mean 'up'"),
        ({"layer*": 0.5}, "matches none"),
        ({"head": 0.5}, "frozen"),
        ({"up": 0.5, "x": 0.1}, "'x' matches none"),
    ],
)
def test_prune_when_a_word_is_of_nothing_then_it_is_said(net, allocation, said):
    before = {name: p.clone() for name, p in net.named_parameters()}
    with pytest.raises(NoMatchError, match=said):
        sc.prune(net, X, allocation=allocation, inplace=True)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


TWO_OF_FOUR = {"granularity": "2:4", "exclude": ["stem", "head"]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_sparsity": 0.3}, "at most max_sparsity=0.3"),
        ({"min_sparsity": 0.6}, "at least min_sparsity=0.6"),
        ({**TWO_OF_FOUR, "allocation": {"up.weight": 0.25}}, "removes 0.5 exactly"),
        ({"targets": [{"names": ["wide"]}]}, "is not selected"),
    ],
)
def test_prune_when_a_share_is_against_another_setting_then_it_is_said(net, settings, said):
    with pytest.raises(ConfigError, match=said):
        sc.prune(net, X, **{"allocation": {"up": 0.5}, **settings})


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan"), "half", True, None])
def test_config_when_a_share_is_none_then_it_names_the_place(share):
    with pytest.raises(ConfigError, match=r"allocation\.up"):
        sc.Config(allocation={"up": share})


def test_config_when_it_is_written_then_the_allocation_is_read_again(tmp_path):
    config = sc.Config(allocation={"layer*": 0.5, "fc": 0})
    config.save(tmp_path / "c.json")
    assert sc.Config.load(tmp_path / "c.json") == config
    assert json.loads((tmp_path / "c.json").read_text())["allocation"]["layer*"] == 0.5
    assert hash(config) == hash(sc.Config.load(tmp_path / "c.json"))


def test_pruner_when_on_a_schedule_then_shares_grow_and_survive_a_file(net, tmp_path):
    dense, config = (
        copy.deepcopy(net),
        sc.Config(allocation={"up": 0.8}, schedule="linear", steps=2),
    )
    pruner = Pruner(net, config, X)
    pruner.step()
    assert int(pruner.keeps["up"].sum()) == 12
    pruner.save(tmp_path / "run")
    again = Pruner(dense, config, X)
    again.load(tmp_path / "run")
    again.step()
    assert int(again.keeps["up"].sum()) == 4
    assert kept(again.finish()) == {"stem": 12, "up": 4, "wide": 30}
    with pytest.raises(ConfigError, match="allocation"):
        Pruner(Net(), config.replace(allocation={"up": 0.7}), X).load(tmp_path / "run")


def test_state_when_it_is_older_than_a_setting_then_the_default_stands_for_it(net):
    config = sc.Config(sparsity=0.5, steps=2)
    pruner = Pruner(net, config, X)
    pruner.step()
    state = pruner.state_dict()
    del state["config"]["allocation"]
    Pruner(Net(), config, X).load_state_dict(state)
    with pytest.raises(ConfigError, match="allocation"):
        Pruner(Net(), config.replace(allocation={"up": 0.5}), X).load_state_dict(state)
