"""A table of operations: nothing counts as nothing, and what it lacks is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.costs import COSTS, Subject
from secateur.costs.latencies import Latencies
from secateur.runtime import measure
from secateur.runtime.measure import Latency


class Normed(nn.Module):
    """Its group norm alone does not run at some of the widths that a cut of its groups leaves."""

    def __init__(self, groups: int = 4):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 2 * groups, 3)
        self.shuffle, self.norm = nn.PixelShuffle(2), nn.GroupNorm(groups, 2 * groups)
        self.head = nn.Linear(2 * groups, 4)

    def forward(self, x):
        x = self.norm(self.b(self.shuffle(self.a(x)))).relu()
        return self.head(x.topk(2, -1)[0].mean((2, 3)).cumsum(-1))


class Frequencies(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.fft.ifft2(torch.fft.fft2(self.a(x).relu())).real
        return self.head(x.mean((2, 3)))


X = torch.randn(1, 3, 8, 8)


@pytest.fixture
def latency_of(monkeypatch):
    """Return a cost for which every operation takes a millisecond, and every model twenty."""
    one = Latency(1.0, 1.0, 1.0, 5, 1)

    def add(table, runs, clock):
        table.found |= dict.fromkeys(runs, one)

    def time(cost, models):
        return dict.fromkeys(models, Latency(20.0, 20.0, 20.0, 5, 1))

    monkeypatch.setattr(Latencies, "add", add)
    monkeypatch.setattr(COSTS["latency"], "time", time)

    def made(model, forget=None):
        structure = sc.analyze(model.eval(), X)
        if forget is not None:
            (op,) = [op for op in structure.inferred.recording.ops if op.name == forget]
            del structure.inferred.types[op.outputs[0].value]
        return structure, COSTS["latency"](Subject(model, X, structure.inferred))

    return made


@pytest.mark.parametrize("groups", [3, 4, 6])
def test_latency_when_an_operation_does_not_run_at_a_width_then_it_counts_as_when_dense(
    latency_of, groups
):
    structure, cost = latency_of(Normed(groups))
    whole, some = cost.sum(lambda atom: atom.size), False
    for group in structure.groups:
        for kept in range(1, group.size + 1):
            count = structure.counter({group.name: kept})
            assert cost.sum(count) == whole, (group.name, kept)
            some |= "counted as when dense: aten.native_group_norm" in cost.told(cost.dense, count)
    assert some
    dense = cost.told(cost.dense, lambda atom: atom.size)  # of what was asked, not of all tried
    assert "counted as when dense" not in dense
    assert "not in the table" not in dense


def test_latency_when_an_operation_never_runs_alone_then_it_is_named_once(latency_of):
    structure, cost = latency_of(Frequencies())
    for kept in (16, 5):
        said = cost.told(cost.dense, structure.counter({"a": kept}))
        assert said.endswith("not in the table: aten._fft_c2c.default")


def test_latency_when_shapes_are_not_followed_then_the_operation_is_named(latency_of):
    _, cost = latency_of(Normed(), forget="aten.cumsum.default")
    assert "not in the table: " in cost.told(cost.dense, lambda atom: atom.size)
    assert "aten.cumsum.default" in cost.told(cost.dense, lambda atom: atom.size)


X86 = "processor\t: 0\nvendor_id\t: Intel\nmodel name\t: {}\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU part\t: {}\n"
POWER = "processor\t: 0\ncpu\t\t: {}\nclock\t\t: 3.0GHz\n"


@pytest.mark.parametrize("form", [X86, ARM, POWER])
def test_latencies_when_another_processor_measured_them_then_they_are_refused(
    tmp_path, monkeypatch, form
):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(measure, "CPUINFO", info)
    device = torch.device("cpu")
    info.write_text(form.format("one"))
    first = Latencies.here(device)
    assert "one" in first.made_on["device"]
    first.check(Latencies.here(device), "t.json")
    info.write_text(form.format("two"))
    with pytest.raises(sc.errors.ConfigError, match=r"elsewhere: device '.*one', here '.*two'"):
        first.check(Latencies.here(device), "t.json")


@pytest.mark.parametrize("text", [None, "", ":::", "model name:\n", "\n\n"])
def test_processor_when_the_system_says_nothing_then_it_is_what_python_knows(
    tmp_path, monkeypatch, text
):
    info = tmp_path / "cpuinfo"
    if text is not None:
        info.write_text(text)
    monkeypatch.setattr(measure, "CPUINFO", info)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "somewhere")
    assert measure.processor() == "somewhere"


class Counting(nn.Module):
    """It writes to its buffer, to its input and to a number of its own at every forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.runs = nn.Linear(8, 16), nn.Linear(16, 4), 0
        self.register_buffer("seen", torch.zeros(2**15))  # so large that it is no small copy

    def forward(self, x):
        self.runs += 1
        self.seen.add_(1)
        return self.b(self.a(x.mul_(0.5)).relu())


def test_time_when_models_are_measured_then_no_mode_is_on_and_nothing_of_it_stays(monkeypatch):
    from secateur.costs import latency as file

    model, x = Counting().eval(), torch.ones(2, 8)
    cost = COSTS["latency"](Subject(model, x, sc.analyze(model, x).inferred))
    modes = []

    def measured(models, example, **how):
        modes.append((torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()))
        return measure.latency(models, example, runs=3, **how)

    monkeypatch.setattr(file, "measured", measured)
    assert cost.time({"dense": model})["dense"].median > 0
    assert modes == [(0, 0)]
    assert model.runs == 0
    assert not model.seen.any()
    assert x.eq(1).all()
