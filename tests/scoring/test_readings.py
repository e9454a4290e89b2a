"""What an operation multiplies a parameter by: ``y = x wᵀ`` holds of every reading."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.scoring.readings import Reading
from secateur.scoring.statistics import STATISTICS
from secateur.scoring.watching import Watch


def readings(model: nn.Module, *inputs: Tensor, padding: tuple[Tensor, ...] = ()) -> list[Reading]:
    """Return what a forward reads, once each reading was seen to be what its operation computes."""
    found: list[Reading] = []
    parameters = dict(model.double().named_parameters())

    def seen(reading: Reading, out: Tensor) -> None:
        weight = reading.arrangement.of(parameters[reading.arrangement.name].detach())
        rows = 0
        for where, x, y in reading.chunks(out):
            assert y is not None
            torch.testing.assert_close(torch.matmul(x, weight[where].mT), y)
            rows += len(x) * x.shape[1]
        assert rows
        found.append(reading)

    watch = Watch(parameters.items(), seen)
    watch.start(padding)
    with torch.no_grad(), watch:
        model(*(x.double() if x.is_floating_point() else x for x in inputs))
    return found


class Uses(nn.Module):
    """A stack and a matrix, used in the way that a test asks for."""

    def __init__(self, use: Callable[..., object]):
        super().__init__()
        self.stack, self.matrix = (
            nn.Parameter(torch.randn(3, 8, 4)),
            nn.Parameter(torch.randn(16, 8)),
        )
        self.use = use

    def forward(self, x: Tensor) -> object:
        return self.use(self, x)


MODULES = {
    "linear": (nn.Linear(8, 4), (3, 8)),
    "one output": (nn.Linear(8, 1), (3, 8)),
    "one input": (nn.Linear(1, 4), (3, 1)),
    "three dimensions": (nn.Linear(8, 4, bias=False), (2, 5, 8)),
    "a vector": (nn.Linear(8, 4), (8,)),
    "unbatched": (nn.Conv2d(4, 6, 1), (4, 5, 5)),
    "line": (nn.Conv1d(4, 6, 5, padding=2), (2, 4, 11)),
    "space": (nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), (2, 4, 3, 5, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 6)),
    "output padding": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (2, 4, 5, 6),
    ),
    "cropped": (nn.ConvTranspose1d(4, 6, 2, stride=3, padding=1), (2, 4, 5)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 5, 5)),
}


@pytest.mark.parametrize("name", MODULES)
def test_reading_when_a_layer_runs_then_is_what_it_multiplies(name):
    model, shape = MODULES[name]
    (found,) = readings(model, torch.randn(shape))
    assert found.arrangement.name == "weight"


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": 2}, {"stride": 3}]
)
def test_reading_when_a_convolution_runs_then_is_what_it_multiplies(transposed, groups, options):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    (found,) = readings(kind(4, 8, 3, groups=groups, **options), torch.randn(2, 4, 11, 9))
    assert found.systems == groups


USES = {
    "one of a stack": lambda m, x: torch.stack([x[i] @ m.stack[i] for i in range(3)]),
    "a stack": lambda m, x: torch.einsum("bnk,bkm->bnm", x, m.stack),
    "some rows": lambda m, x: F.linear(x, m.matrix[4:8]),
    "the parameter first": lambda m, x: m.matrix[:2] @ x[0].t(),
    "einsum": lambda m, x: torch.einsum("bnk,ok->bno", x, m.matrix),
    "a vector": lambda m, x: m.matrix @ x[0, 0],
    "a reshaped one": lambda m, x: x @ m.matrix.view(2, 8, 8)[1].t(),
    "a copy": lambda m, x: x @ m.matrix.clone().t(),
    "summed up": lambda m, x: torch.addmm(x[0, :, :1], x[0], m.matrix.t()),
    "a batch of biases": lambda m, x: torch.baddbmm(x[..., :4], x, m.stack),
}


@pytest.mark.parametrize("name", USES)
def test_reading_when_code_multiplies_by_hand_then_is_found(name):
    assert readings(Uses(USES[name]), torch.randn(3, 5, 8))


NO_READINGS = {
    "every other row": lambda m, x: x @ m.matrix[::2].t(),
    "across rows": lambda m, x: x[0].t() @ m.matrix.view(-1)[3 : 3 + 40].view(5, 8),
    "a scale": lambda m, x: x * m.matrix[0],
    "a sum": lambda m, x: m.matrix.sum(),
}


@pytest.mark.parametrize("name", NO_READINGS)
def test_reading_when_a_view_is_no_part_or_nothing_is_contracted_then_there_is_none(name):
    assert not readings(Uses(NO_READINGS[name]), torch.randn(3, 5, 8))


def test_reading_when_a_stack_is_read_then_each_expert_is_a_system():
    (found,) = readings(Uses(USES["a stack"]), torch.randn(3, 5, 8))
    assert (found.systems, found.features) == (3, 8)


def test_reading_when_positions_are_padding_then_they_are_no_rows():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    for turned in (False, True):
        model = nn.Linear(8, 4).double()
        x = torch.randn(2, 3, 8)
        given = x.transpose(0, 1).contiguous() if turned else x
        (found,) = readings(model, given, padding=(mask,))
        (rows,) = [part for _, part, _ in found.chunks()]
        expected = x[mask] if not turned else x.transpose(0, 1)[mask.t()]
        torch.testing.assert_close(rows[0], expected.double())


def test_reading_when_rows_are_chosen_then_knows_of_how_many_and_which_are_data():
    mask = torch.tensor([[True, True, False, True]])
    index = torch.tensor([0, 2, 3])

    class Chooses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.expert = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.expert(self.expert(x.view(-1, 8)[index]).relu())

    for found in readings(Chooses(), torch.randn(1, 4, 8), padding=(mask,)):
        assert found.chosen_of == 3
        assert found.count().tolist() == [2]
        assert torch.equal(found.routes[0], index)


@pytest.mark.parametrize(
    "name", [n for n, s in STATISTICS.items() if s.source == "forward" and not s.delivers]
)
def test_statistic_when_rows_come_in_two_parts_then_its_sums_add_up(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Linear(16, 5))
    x = torch.randn(6, 3, 6, 6)
    statistic = STATISTICS[name]
    whole, parts = readings(model, x), [readings(model, half) for half in x.split([2, 4])]
    for i, reading in enumerate(whole):
        total = statistic.observe(reading)
        added = [statistic.observe(part[i]) for part in parts]
        for key, value in total.items():
            torch.testing.assert_close(value, added[0][key] + added[1][key])
