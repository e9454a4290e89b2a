"""Shares and amounts of every cost, met from below and told."""

from __future__ import annotations

import json
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.costs import COSTS, Subject, amount_of
from secateur.costs.cost import Timed
from secateur.errors import ConfigError, FileError, GoalError
from secateur.pruner.candidates import Candidates
from secateur.report import report_of, to_markdown
from secateur.runtime.measure import Latency
from secateur.scoring.allocations import allocators
from tests.zoo import torchvision_models

X = torch.zeros(4, 6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(6, 24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.wide, self.head = nn.Linear(24, 64), nn.Linear(64, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = x + self.down(self.up(x).relu())
        return self.head(self.wide(x).relu())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def left(of, result, example=X):
    """Return what a really cut model costs, counted anew."""
    again = sc.analyze(result.model, example)
    return COSTS[of](Subject(result.model, example, again.inferred)).of(lambda atom: atom.size)


COUNTED = sorted(name for name in COSTS if not issubclass(COSTS[name], Timed))
ALLOCATIONS = ["uniform", "global", "depth", "owl", "error", "estimate"]


@pytest.mark.parametrize(("of", "share"), [*product(COUNTED, [0.2, 0.5])])
def test_prune_when_a_share_of_a_cost_is_to_go_then_it_does_and_is_told(net, of, share):
    result = sc.prune(net, X, sparsity=share, of=of)
    structure = sc.analyze(net, X)
    dense = COSTS[of](Subject(net, X, structure.inferred)).of(lambda atom: atom.size)
    assert 0.85 * (1 - share) * dense < left(of, result) <= (1 - share) * dense
    (goal,) = result.goals
    assert (goal.of, goal.met) == (of, True)
    assert goal.gone == pytest.approx(1 - left(of, result) / dense)
    assert f"goal: {of}: asked {share:.1%} to go" in " ".join(str(result).split())


@pytest.mark.parametrize(
    ("of", "written", "most"),
    [
        ("params", "3 k params", 3000),
        ("macs", "0.012M MACs", 12_000),
        ("bytes", "16 kB", 16_000),
        ("bytes", "15 KiB", 15 * 1024),
        ("memory", "1500 B", 1500),
    ],
)
def test_prune_when_an_amount_is_given_then_no_more_is_left(net, of, written, most):
    named = {"of": "memory"} if of == "memory" else {}
    result = sc.prune(net, X, budget=written, **named)
    assert 0.85 * most < left(of, result) <= most
    assert result.goals[0].asked == f"at most {written}"


@pytest.mark.parametrize("allocate", ALLOCATIONS)
@pytest.mark.parametrize("goal", [{"of": "macs"}, {"of": "params"}, {}])
def test_prune_when_shares_are_allocated_then_the_goal_is_met(net, allocate, goal):
    data = list(torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(0)))
    result = sc.prune(net, X, sparsity=0.5, allocate=allocate, data=data, **goal)
    if goal:
        assert 0.8 < left(goal["of"], result) / getattr(result.before, goal["of"]) / 0.5 <= 1
    else:
        sizes = sum(g.size for g in result.structure.groups)
        kept = sum(result.plan.counts.get(g.name, g.size) for g in result.structure.groups)
        assert 0.45 * sizes <= kept <= 0.52 * sizes


@pytest.mark.slow
def test_prune_when_several_amounts_are_given_then_all_are_met(net):
    data = list(torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(0)))
    for allocate in ALLOCATIONS:
        budget = ["3 k params", "10 k MACs", "15 kB"]
        result = sc.prune(net, X, budget=budget, allocate=allocate, data=data)
        assert [goal.met for goal in result.goals] == [True] * 3
        assert left("params", result) <= 3000
        assert left("macs", result) <= 10_000
        assert left("bytes", result) <= 15_000


def test_bytes_when_a_model_is_saved_then_they_are_those_of_its_file(net, tmp_path):
    result = sc.prune(net, X, sparsity=0.3, of="bytes")
    result.save(tmp_path)
    assert left("bytes", result) == (tmp_path / "model.safetensors").stat().st_size


def test_bytes_when_there_are_buffers_and_other_types_then_they_are_those_of_the_file(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(1, 3, 8, 8)
    result = sc.prune(net.eval(), x, sparsity=0.4, of="bytes")
    result.save(tmp_path)
    assert left("bytes", result, x) == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": "12"}, "write a number and a unit"),
        ({"budget": "ms"}, "write a number and a unit"),
        ({"budget": "-3 ms"}, "write a number and a unit"),
        ({"budget": "0 ms"}, "greater than 0"),
        ({"budget": "1e400 params"}, "more than can be counted"),
        ({"budget": "3 k params", "targets": [{"names": ["up"], "sparsity": 0.5}]}, "allocation="),
        ({"budget": "3 k params", "targets": [{}, {"threshold": 0.5}]}, r"targets\[1\].threshold"),
        ({"budget": "12 MS"}, "Did you mean 'ms'"),
        ({"budget": "20 mb"}, "Did you mean 'MB'"),
        ({"budget": "3 G FLOPs"}, "One MAC is two FLOPs"),
        ({"budget": "5 M parms"}, "Did you mean 'Mparams'"),
        ({"budget": 12}, "must be an amount"),
        ({"budget": ["12 ms", 3]}, "write a number and a unit"),
        ({"budget": "12 ms", "of": "macs"}, "of='macs' another"),
        ({"budget": "12 ms", "sparsity": 0.5}, "'budget' and 'sparsity' are both given"),
        ({"sparsity": 0.5, "of": "latncy"}, "Did you mean 'latency'"),
        ({"budget": "1 k params", "granularity": "element"}, "needs granularity 'group'"),
        ({"sparsity": 0.5, "allocate": "depht", "of": "macs"}, "Did you mean 'depth'"),
        ({"sparsity": 0.5, "allocate": "error", "of": "macs"}, "needs data"),
    ],
)
def test_prune_when_a_budget_is_none_then_it_says_what_to_write(net, settings, said):
    with pytest.raises((ConfigError, KeyError), match=said):
        sc.prune(net, X, **settings)


@pytest.mark.parametrize("budget", ["10 params", "1 MACs", "50 B"])
def test_prune_when_an_amount_is_out_of_reach_then_it_says_so_first(net, budget):
    with pytest.raises(GoalError, match="cannot go"):
        sc.prune(net, X, budget=budget)
    result = sc.prune(net, X, budget=budget, strict=False)
    assert "cannot go, at most" in result.warnings[0]
    assert not result.goals[0].met


@pytest.mark.parametrize("allocate", ["uniform", "global", "depth"])
@pytest.mark.parametrize(
    "bounds",
    [
        {"min_sparsity": 0.1},
        {"min_sparsity": 0.25},
        {"targets": [{"min_sparsity": 0.25}]},
        {"targets": [{"names": ["up", "wide"], "min_sparsity": 0.25}, {"names": ["stem"]}]},
        {"min_sparsity": 0.25, "max_sparsity": 0.6, "round_to": 2},
    ],
)
def test_prune_when_groups_lose_at_least_so_much_then_that_is_no_second_goal(net, allocate, bounds):
    result = sc.prune(net, X, budget="2.2 k params", allocate=allocate, **bounds)
    assert [goal.asked for goal in result.goals] == ["at most 2.2 k params"]
    assert 1900 < left("params", result) <= 2200
    least = 0.1 if bounds == {"min_sparsity": 0.1} else 0.25
    for name, size in (("up", 48), ("wide", 64)):
        assert result.plan.counts[name] <= size * (1 - least)


@pytest.mark.parametrize("allocate", ["depht", "globl", "Uniform", ""])
def test_config_when_no_allocation_has_the_name_then_it_says_which_do(allocate):
    with pytest.raises(ConfigError, match="allocate: unknown allocation .*Known: depth, error"):
        sc.Config(sparsity=0.5, allocate=allocate)


NEED_DATA = sorted(name for name in allocators if allocators.facts[name].data)


@pytest.mark.parametrize(
    ("taken", "fits"),
    [
        ([[0.0, 1.0, 0.5]], True),
        ([[0, 0, 0.5]], False),
        ([[0, 2, 0.5]], False),
        ([[0, 1, 1.5]], False),
    ],
)
def test_pruner_when_a_state_says_a_mixture_then_its_kinds_and_share_are_there(taken, fits):
    torch.manual_seed(0)
    config = sc.Config(sparsity=0.4, of="macs", allocate="error", steps=2, schedule="linear")
    pruner = sc.Pruner(Streams().eval(), config, X)
    pruner.calibrate([torch.randn(64, 6) for _ in range(4)])
    pruner.step()
    state = pruner.state_dict()
    state["allocation"]["taken"] = taken
    resumed = sc.Pruner(Streams().eval(), config, X)
    resumed.load_state_dict(state)
    with nullcontext() if fits else pytest.raises(FileError, match="other groups"):
        resumed.step()
        assert resumed.finish().goals[0].met


@pytest.mark.parametrize("allocate", NEED_DATA)
@pytest.mark.parametrize("criterion", ["taylor", "l2", "activation"])
def test_prune_when_an_allocation_gets_labelled_batches_then_it_says_what_is_wrong(
    net, allocate, criterion
):
    data = [(torch.randn(4, 6), torch.zeros(4).long())]

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    settings = {"criterion": criterion, "of": "macs", "allocate": allocate}
    with pytest.raises(ConfigError, match="a batch is what the loss takes"):
        sc.prune(net, X, 0.3, data=data, loss=loss, **settings)
    pruner = sc.Pruner(net, sc.Config(sparsity=0.3, **settings), X, trained=False)
    pruner.calibrate(data, loss)
    pruner.calibrate([x for x, _ in data])
    pruner.decide()
    assert pruner.finish(inplace=False).goals[0].met


def test_prune_when_an_allocator_is_registered_then_its_facts_are_all_there_is_to_say(net):
    def backwards(case):
        assert case.needs_data("backwards")
        return lambda ratio: [ratio] * len(case.selectables)

    allocators.register("backwards", data=True, pooled=True)(backwards)
    try:
        data = [torch.randn(8, 6)]
        result = sc.prune(net, X, 0.4, of="macs", allocate="backwards", data=data)
        assert result.goals[0].met
        alike = sc.prune(net, X, 0.4, of="macs", allocate="global", data=data)
        assert result.plan.counts == alike.plan.counts
    finally:
        del allocators._functions["backwards"], allocators.facts["backwards"]


def test_prune_when_an_amount_is_more_than_there_is_then_nothing_goes(net):
    result = sc.prune(net, X, budget="1 M params")
    assert result.after.params == result.before.params
    assert result.goals[0].met


def test_pruner_when_an_amount_is_on_a_schedule_then_it_is_met_at_the_end(net):
    config = sc.Config(budget="3 k params", schedule="linear", steps=3)
    pruner = sc.Pruner(net, config, X)
    shares = [pruner.step()["sparsity"] for _ in range(3)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1]
    assert 2500 < pruner.finish().after.params <= 3000


class Attending(nn.Module):
    """Queries and keys, which only each other read, and a hidden layer, which weights read.

    ``summed``: queries are the sum of what two layers make.
    """

    def __init__(self, summed=False):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 12)
        self.more = nn.Linear(6, 8) if summed else None
        self.up, self.head = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x):
        q = self.q(x) if self.more is None else self.q(x) + self.more(x)
        scores = q @ self.k(x).transpose(1, 2)
        return self.head(self.up(scores.softmax(-1) @ self.v(x)).relu()).mean(1)


@pytest.mark.parametrize("summed", [False, True])
def test_estimate_when_it_is_unknown_what_makes_a_product_then_that_alone_is_measured(
    monkeypatch, summed
):
    torch.manual_seed(0)
    measured = []
    error = Candidates.error

    def noted(self, keeps, **options):
        if "goal" not in options:
            measured.append(({self.selectables[i].name for i in keeps}, options))
        return error(self, keeps, **options)

    monkeypatch.setattr(Candidates, "error", noted)
    x, model = torch.randn(8, 5, 6), Attending(summed).eval()
    result = sc.prune(model, x, 0.4, of="macs", allocate="estimate", data=[x, x])
    assert result.goals[0].met
    assert {name for names, _ in measured for name in names} == ({"q"} if summed else set())
    assert all(options == {"squares": True} for _, options in measured)


class Streams(nn.Module):
    """Two blocks around a residual stream: widths of two kinds."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 4)
        self.ups = nn.ModuleList(nn.Linear(16, n) for n in (24, 48))
        self.downs = nn.ModuleList(nn.Linear(n, 16) for n in (24, 48))

    def forward(self, x):
        x = self.stem(x)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(up(x).relu())
        return self.head(x)


WAYS = ("by curves", "alike", "hidden first", "mixed")
"""Alike, here, is widths first: what is the same as before is not measured twice."""


@pytest.mark.parametrize("allocate", ["error", "estimate"])
@pytest.mark.parametrize("best", WAYS)
def test_prune_when_curves_share_out_then_nothing_that_needs_none_is_nearer(
    monkeypatch, allocate, best
):
    torch.manual_seed(0)
    net, data = Streams().eval(), [torch.randn(64, 6) for _ in range(4)]
    tried, error = [], Candidates.error

    def noted(self, keeps, **options):
        if not options.get("goal"):
            return error(self, keeps, **options)
        tried.append({self.selectables[i].name: int(keep.sum()) for i, keep in keeps.items()})
        return 0.1 if len(tried) == 1 + WAYS.index(best) else 0.2 + len(tried) / 1000

    monkeypatch.setattr(Candidates, "error", noted)
    result = sc.prune(net, X, 0.4, of="macs", allocate=allocate, data=data)
    assert len(tried) == len({tuple(each.items()) for each in tried}) >= len(WAYS)
    sizes = {group.name: group.size for group in result.structure.groups}
    assert tried[1]["stem"] == sizes["stem"], "widths alone"
    assert tried[2]["ups.0"] == sizes["ups.0"], "the stream alone"
    assert tried[3]["ups.0"] < sizes["ups.0"] > tried[1]["ups.0"], "both"
    assert tried[3]["stem"] < sizes["stem"], "both"
    taken = tried[WAYS.index(best)]
    kept = {name: result.plan.counts.get(name, size) for name, size in sizes.items()}
    assert all(abs(kept[name] - taken[name]) <= 2 for name in kept)
    assert result.goals[0].met
    (said,) = [note for note in result.notes if note.startswith("shared out ")]
    name, _, errors = said.removeprefix("shared out ").partition(": ")
    assert name == best or (best == "mixed" and ", then " in name)
    assert f"{name} 0.1" in errors


@pytest.mark.parametrize(
    ("taken", "fits"),
    [(None, True), ([[1]], True), ([[9]], False), ([[0.5]], False)],
)
def test_pruner_when_a_state_says_what_was_taken_then_it_is_one_of_the_ways(net, taken, fits):
    config = sc.Config(sparsity=0.5, of="macs", allocate="error", steps=2, schedule="linear")
    pruner = sc.Pruner(net, config, X)
    pruner.calibrate(list(torch.randn(4, 16, 6)))
    pruner.step()
    state = pruner.state_dict()
    state["allocation"].pop("taken")
    state["allocation"] |= {} if taken is None else {"taken": taken}
    resumed = sc.Pruner(Net().eval(), config, X)
    resumed.load_state_dict(state)
    with nullcontext() if fits else pytest.raises(FileError, match="other groups"):
        resumed.step()
        assert resumed.finish().goals[0].met


@pytest.mark.parametrize("allocate", NEED_DATA)
def test_pruner_when_it_is_resumed_then_what_an_allocation_measured_is_not_measured_again(
    net, allocate, tmp_path
):
    data = list(torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(0)))
    config = sc.Config(sparsity=0.5, of="macs", allocate=allocate, schedule="linear", steps=3)
    pruner = sc.Pruner(net, config, X)
    pruner.calibrate(data)
    pruner.step()
    pruner.save(tmp_path / "run")
    fresh = Net().eval()
    fresh.load_state_dict(net.state_dict())
    resumed = sc.Pruner(fresh, config, X)  # it has no data: what it needs of these, it has
    resumed.load(tmp_path / "run")
    for each in (pruner, resumed):
        parameters = dict(each.model.named_parameters())
        with torch.no_grad():  # a training, after which other shares would be found
            parameters["up.weight"].mul_(20)
            parameters["wide.weight"].mul_(torch.linspace(0, 9, 64)[:, None])
        each.step()
        each.step()
    assert resumed.plan == pruner.plan
    assert resumed.finish().goals[0].met


@pytest.mark.parametrize(
    "found",
    [
        {"ladders": []},
        {"ladders": "x"},
        {"ladders": [0.5, 0.5]},
        {"ladders": [[[0.5]]], "errors": [[0.1]], "prices": [[0.1]]},
        {"ladders": [[]], "errors": [[]], "prices": [[]]},
        {"ladders": [[7.0]], "errors": [[0.1]], "prices": [[0.1]]},
        {"ladders": [[float("nan")]], "errors": [[0.1]], "prices": [[0.1]]},
        {"outliers": [1.0]},
        {"outliers": [[1.0]]},
        3,
    ],
    ids=str,
)
def test_pruner_when_a_states_allocation_is_of_another_model_then_says_so(net, found):
    config = sc.Config(sparsity=0.5, of="macs", allocate="error", steps=2, schedule="linear")
    pruner = sc.Pruner(net, config, X)
    state = {**pruner.state_dict(), "allocation": found}

    def resumed():
        pruner.load_state_dict(state)
        pruner.step()

    with pytest.raises(FileError, match="allocation|other groups"):
        resumed()


def test_report_when_there_were_goals_then_it_tells_them(net):
    result = sc.prune(net, X, budget=["3 k params", "2 MB"])
    report = report_of(result, net)
    assert [fact.of for fact in report.goals] == ["params", "bytes"]
    assert "at most 3 k params" in to_markdown(report)
    assert type(report).from_text(report.to_text(), "here") == report


def test_config_when_a_budget_is_written_then_it_is_read_again(tmp_path):
    config = sc.Config(budget=["12 ms", "20 MB"], allocate="error")
    config.save(tmp_path / "c.json")
    assert sc.Config.load(tmp_path / "c.json") == config
    assert sc.Config(budget="12 ms").budget == ("12 ms",)
    assert amount_of("2 us").value == pytest.approx(2e-6)


@pytest.fixture
def stairs(monkeypatch):
    """Let every operation take what its widest tensor does, in steps of 8, and models likewise."""

    def add(table, runs, clock):
        for key in runs:
            sizes = [int(n) for part in key.split("[")[1:] for n in part.split("]")[0].split(",")]
            steps = max(sizes) // 8 + (max(sizes) % 8 > 0)
            table.found[key] = Latency(float(steps), float(steps), float(steps), 5, 1)

    def time(cost, models):
        found = {}
        for name, model in models.items():
            widths = [-(-max(p.shape) // 8) for n, p in model.named_parameters() if p.ndim > 1]
            found[name] = Latency(2.0 * sum(widths) + 3, 2.0 * sum(widths), 99.0, 5, 1)
        return found

    monkeypatch.setattr("secateur.costs.latencies.Latencies.add", add)
    monkeypatch.setattr(COSTS["latency"], "time", time)


@pytest.mark.parametrize("allocate", ["uniform", "global", "depth"])
def test_latency_when_a_device_has_steps_then_widths_are_on_them_and_the_goal_is_met(
    net, stairs, allocate
):
    result = sc.prune(net, X, sparsity=0.4, of="latency", allocate=allocate)
    assert all(count % 8 == 0 for count in result.plan.counts.values()), result.plan.counts
    assert 0.4 <= result.goals[0].gone < 0.6
    assert "processor time" in result.goals[0].spread or "wall time" in result.goals[0].spread


def test_latency_when_it_cannot_be_met_then_it_says_so_and_the_model_is_as_before(net, stairs):
    before = {name: p.clone() for name, p in net.named_parameters()}
    with pytest.raises(GoalError):
        sc.prune(net, X, budget="4 ms", inplace=True)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    result = sc.prune(net, X, budget="4 ms", strict=False)
    assert result.warnings[0]
    assert not result.goals[0].met


def test_latency_when_a_table_is_named_then_it_is_kept_and_read(net, tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    first = sc.prune(net, X, sparsity=0.3, of="latency", latency_table=str(path), strict=False)
    kept = json.loads(path.read_text())
    assert kept["made_on"]["torch"] == torch.__version__
    assert any("addmm" in key for key in kept["operations"])
    assert first.goals[0].of == "latency"
    kept["made_on"]["device"] = "another"
    path.write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match="was measured elsewhere: device 'another'"):
        sc.prune(net, X, sparsity=0.3, of="latency", latency_table=str(path))
    Path(path).write_text("[]")
    with pytest.raises(FileError, match="no table of latencies"):
        sc.prune(net, X, sparsity=0.3, of="latency", latency_table=str(path))


@pytest.mark.parametrize("implementation", ["grouped_mm", "batched_mm", "eager"])
def test_macs_when_experts_are_stacked_then_they_count_as_routed(implementation):
    torchvision_models()
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    model.set_experts_implementation(implementation)
    tokens, wide = 16, 32
    structure = sc.analyze(
        model, {"input_ids": torch.zeros(2, 8, dtype=torch.long), "use_cache": False}
    )
    experts = tokens * 2 * 3 * wide * 48
    attention = tokens * (wide * (32 + 16 + 16 + 32)) + 2 * 4 * 8 * 8 * 8 * 2
    others = tokens * wide * (4 + 32)  # the router and the head
    rope = structure.cost().macs - experts - attention - others
    assert 0 <= rope <= 2 * 8 * 8  # positions by frequencies are a product, too


@pytest.mark.parametrize(
    ("written", "of"), [("80 % params", "params"), ("80% MACs", "macs"), ("80 % bytes", "bytes")]
)
def test_prune_when_a_percentage_may_stay_then_it_is_the_share_that_goes(net, written, of):
    result = sc.prune(net, X, budget=written)
    other = sc.prune(net, X, sparsity=0.2, of=of)
    assert result.plan == other.plan
    (goal,) = result.goals
    assert (goal.of, goal.asked, goal.met) == (of, f"at most {written}", True)
    both = sc.prune(net, X, budget=[written, "1 M params"])
    assert [each.met for each in both.goals] == [True, True]


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("120 % params", "above 0 and below 100 %"),
        ("0 % params", "above 0 and below 100 %"),
        ("80 %", "write a number and a unit"),
        ("80 % M params", "unknown unit 'M params'"),
        ("80 % parms", "Did you mean 'params'?"),
    ],
)
def test_budget_when_a_percentage_makes_no_sense_then_says_what_to_write(written, why):
    with pytest.raises(ConfigError) as caught:
        sc.Config(budget=written)
    assert why in str(caught.value)


@pytest.mark.parametrize("granularity", ["element", "out_channel", "in_channel", "group"])
@pytest.mark.parametrize("allocate", ["uniform", "owl", "depth"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_prune_when_shares_differ_then_as_much_goes_as_was_asked(
    allocate: str, granularity: str, sparsity: float
) -> None:
    torch.manual_seed(0)
    layers = nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 16)
    model = nn.Sequential(*layers).eval()
    data = [torch.randn(32, 16) for _ in range(2)]
    config = sc.Config(
        sparsity=sparsity, criterion="wanda", granularity=granularity, allocate=allocate
    )
    pruner = sc.Pruner(model, config, data[0])
    pruner.calibrate(data)
    masks = pruner.decide()
    weights = [masks[name] for name in masks if masks.shape(name)[1:]]
    if granularity == "group":  # channels, of the two layers that have any to give
        kept = [float(mask.any(1).float().mean()) * len(mask) for mask in weights[:2]]
        gone = 1 - sum(kept) / (40 + 32)
    else:
        gone = 1 - sum(int(m.sum()) for m in weights) / sum(m.numel() for m in weights)
    assert abs(gone - sparsity) < 0.06
