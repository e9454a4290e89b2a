"""Where a report puts its bars, curves and lines."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.repair.report import Distance, Refit, Repair
from secateur.report.facts import GroupFact, Slice
from secateur.report.figures import MOST_PIECES, curves, decade, refitted, strip
from secateur.report.map import _lanes, _stops
from secateur.report.repaired import repair_facts


def group(name: str, size: int = 4, kept: tuple[tuple[int, int], ...] | None = None) -> GroupFact:
    return GroupFact(name=name, size=size, kept=kept, params=1, macs=1, exact=True, slices=())


@settings(max_examples=40)
@given(st.integers(1, 3000), st.randoms(use_true_random=False))
def test_strip_when_any_positions_are_kept_then_their_share_is_drawn(
    size: int, random: object
) -> None:
    kept = sorted(random.sample(range(size), max(1, size // 3)))  # type: ignore[attr-defined]
    pieces = strip(group("g", size, tuple((p, p) for p in kept)))
    assert len(pieces) <= max(MOST_PIECES, 1)
    drawn = sum(width * density for _, width, density in pieces)
    assert drawn == pytest.approx(len(kept) / size, rel=0.15, abs=2 / size)
    assert all(start + width <= 1 + 1e-9 for start, width, _ in pieces)


def test_strip_when_nothing_is_cut_then_one_piece() -> None:
    assert strip(group("g")) == [(0.0, 1.0, 1.0)]


def test_curves_when_quantities_have_their_own_steps_then_one_curve_each_inside_its_box() -> None:
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "sparsity": 0.5}, {"step": 3, "loss": 1.0}]
    (loss,) = curves([*history])
    assert loss.name == "loss"
    assert loss.points == ((0.0, 4.0), (100.0, 96.0))


def test_curves_when_constant_then_flat() -> None:
    (curve,) = curves([{"step": 0, "a": 1.0}, {"step": 1, "a": 1.0}])
    assert len({y for _, y in curve.points}) == 1


@pytest.mark.parametrize(("value", "place"), [(0.0, 0), (1e-12, 0), (1e-5, 50), (1, 100), (9, 100)])
def test_decade_when_out_of_the_scale_then_at_its_end(value: float, place: float) -> None:
    assert decade(value) == place


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8)), min_size=1, max_size=25))
def test_lanes_when_groups_overlap_then_never_in_the_same_lane(
    spans: list[tuple[int, int]],
) -> None:
    rows = {f"m{i}": i for i in range(40)}
    groups = []
    for number, (first, length) in enumerate(spans):
        slices = tuple(
            Slice(tensor=f"m{row}.weight", dim=0, role="out") for row in (first, first + length)
        )
        groups.append(group(f"g{number}").model_copy(update={"slices": slices}))
    lines = _lanes([(g, _stops(g, rows)) for g in groups])
    assert len(lines) == len(groups)
    for i, one in enumerate(lines):
        for other in lines[i + 1 :]:
            apart = one.stops[-1].row < other.stops[0].row or other.stops[-1].row < one.stops[0].row
            assert one.lane != other.lane or apart


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), max_size=9))
def test_refitted_when_errors_are_of_any_size_then_bars_stay_in_the_box_and_in_order(
    errors: list[tuple[float, float]],
) -> None:
    facts = repair_facts(
        Repair(
            "bias",
            tuple(Refit(str(i), b, a, 0.1, 9) for i, (b, a) in enumerate(errors)),
            Distance(1.0),
            Distance(0.5),
        )
    )
    drawn = refitted(facts)
    assert [each.name for each in drawn] == [str(i) for i in range(len(errors))]
    assert all(0 <= each.before <= 100 + 1e-9 and 0 <= each.after <= 100 + 1e-9 for each in drawn)
    if any(max(pair) > 0 for pair in errors):
        assert max(max(each.before, each.after) for each in drawn) == pytest.approx(100)
