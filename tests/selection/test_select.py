"""Selection: exact counts, limits, pools, ties, against brute-force oracles."""

from __future__ import annotations

from fractions import Fraction
from math import floor, inf, nan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import ConfigError, ScoreError
from secateur.selection.select import Request, select, select_count

# few distinct values, so that ties are common; halves, so that float32 is exact
SCORE = st.integers(-8, 8).map(lambda x: x / 2)
SCORES = st.lists(SCORE, min_size=1, max_size=24)
PERCENT = st.integers(0, 100)
quick = settings(max_examples=150)


def kept_after(scores: list[float], remove: int, pinned: list[bool] | None = None) -> list[bool]:
    """The definition: sort by (pinned, score, index) and drop the first."""
    pins = pinned or [False] * len(scores)
    order = sorted(range(len(scores)), key=lambda i: (pins[i], scores[i], i))
    gone = set(order[:remove])
    return [i not in gone for i in range(len(scores))]


def one(score: Tensor | list[float], **goal: object) -> Tensor:
    return select([Request(torch.as_tensor(score), **goal)]).keeps[0]


# ratio


@quick
@given(scores=SCORES, percent=PERCENT)
def test_select_when_given_a_ratio_then_exactly_the_floor_of_it_goes(scores, percent):
    remove = floor(len(scores) * Fraction(percent, 100))
    keep = one(scores, sparsity=percent / 100, keep_at_least=0)
    assert keep.tolist() == kept_after(scores, remove)


@pytest.mark.parametrize("percent", range(101))
@pytest.mark.parametrize("n", [100, 1000])
def test_select_when_the_ratio_is_not_exact_in_binary_then_the_decimal_is_meant(n, percent):
    keep = one(torch.rand(n), sparsity=percent / 100, keep_at_least=0)
    assert n - int(keep.sum()) == n * percent // 100


@quick
@given(scores=SCORES, first=PERCENT, second=PERCENT)
def test_select_when_the_ratio_grows_then_nothing_comes_back(scores, first, second):
    low, high = (one(scores, sparsity=p / 100) for p in sorted((first, second)))
    assert not (high & ~low).any()


@quick
@given(scores=SCORES, percent=PERCENT)
def test_select_when_run_twice_then_the_same_and_inputs_are_unchanged(scores, percent):
    score = torch.tensor(scores, requires_grad=True)
    before = score.detach().clone()
    first, second = one(score, sparsity=percent / 100), one(score, sparsity=percent / 100)
    assert torch.equal(first, second)
    assert torch.equal(score, before)
    assert not first.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_select_when_all_scores_tie_then_the_lower_indices_go_first(dtype):
    assert one(torch.ones(5, dtype=dtype), sparsity=0.6).tolist() == [False] * 3 + [True] * 2


def test_select_when_nothing_is_given_then_returns_nothing():
    result = select([])
    assert (result.keeps, result.notes) == ([], [])


@pytest.mark.parametrize("pool", [None, "all"])
def test_select_when_a_request_is_empty_then_its_mask_is_empty(pool):
    result = select([Request(torch.empty(0), sparsity=0.5, pool=pool)])
    assert result.keeps[0].shape == (0,)
    assert result.notes == []


# clusters


@quick
@given(data=st.data(), clusters=st.integers(1, 5), size=st.integers(1, 6), percent=PERCENT)
def test_select_when_split_in_clusters_then_each_is_pruned_for_itself(
    data, clusters, size, percent
):
    parts = [
        data.draw(st.lists(SCORE, min_size=size, max_size=size), label="part")
        for _ in range(clusters)
    ]
    remove = floor(size * Fraction(percent, 100))
    keep = one(sum(parts, []), sparsity=percent / 100, clusters=clusters, keep_at_least=0)
    assert keep.tolist() == [k for part in parts for k in kept_after(part, remove)]


def test_select_when_a_threshold_meets_clusters_then_each_loses_the_same_number():
    keep = one([0.0, 0.1, 0.2, 0.9, 0.8, 0.7], threshold=0.5, clusters=2)
    assert keep.tolist() == [False, True, True, True, True, False]


# limits


@quick
@given(scores=SCORES, data=st.data(), percent=PERCENT, least=st.integers(0, 5))
def test_select_when_positions_are_pinned_then_they_stay_and_the_smallest_others_go(
    scores, data, percent, least
):
    n = len(scores)
    pinned = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    remove = min(floor(n * Fraction(percent, 100)), n - min(n, max(least, sum(pinned))))
    keep = one(
        scores, sparsity=percent / 100, pinned=torch.tensor(pinned), keep_at_least=least
    ).tolist()
    assert keep == kept_after(scores, remove, pinned)


@pytest.mark.parametrize(("least", "kept"), [(0, 0), (1, 1), (3, 3), (9, 4)])
def test_select_when_all_should_go_then_keep_at_least_stays_and_is_noted(least, kept):
    request = Request(torch.tensor([1.0, 2.0, 3.0, 4.0]), sparsity=1.0, keep_at_least=least)
    result = select([request], ["layer1.conv1"])
    assert result.keeps[0].tolist() == [i >= 4 - kept for i in range(4)]
    note = f"layer1.conv1: keeps {kept} of 4 units instead of 0 (keep_at_least={least})"
    assert result.notes == ([note] if kept else [])


def test_select_when_half_of_two_go_then_there_is_nothing_to_note():
    assert select([Request(torch.tensor([1.0, 2.0]), sparsity=0.5)]).notes == []


@pytest.mark.parametrize(
    ("n", "sparsity", "round_to", "kept"),
    [
        (64, 0.5, 8, 32),  # fits already
        (100, 0.5, 8, 48),  # the nearest
        (100, 0.48, 8, 56),  # 52 lies between 48 and 56: more is kept
        (10, 0.1, 8, 8),  # 16 does not exist
        (10, 0.0, 8, 10),  # nothing was to go
        (10, 1.0, 8, 8),  # never 0
        (5, 0.5, 8, 3),  # impossible
    ],
)
def test_select_when_rounding_then_the_nearest_possible_multiple_stays(n, sparsity, round_to, kept):
    result = select([Request(torch.rand(n), sparsity=sparsity, round_to=round_to)])
    assert int(result.keeps[0].sum()) == kept
    assert any("no multiple of 8 fits" in note for note in result.notes) == (n == 5)


def test_select_when_rounding_with_clusters_then_both_hold():
    keep = one(torch.rand(48), sparsity=0.6, clusters=3, round_to=4).reshape(3, 16)
    assert keep.sum(dim=1).tolist() == [8, 8, 8]
    assert keep.sum() % 4 == 0


@quick
@given(scores=SCORES, data=st.data(), percent=PERCENT, round_to=st.integers(1, 8))
def test_select_when_rounding_then_bounds_still_hold(scores, data, percent, round_to):
    n = len(scores)
    low, high = sorted((data.draw(PERCENT), data.draw(PERCENT)))
    keep = one(
        scores,
        sparsity=percent / 100,
        min_sparsity=low / 100,
        max_sparsity=high / 100,
        round_to=round_to,
    )
    gone = n - int(keep.sum())
    assert min(n * low // 100, n - 1) <= gone <= n * high // 100


# threshold


@quick
@given(scores=SCORES, threshold=SCORE)
def test_select_when_given_a_threshold_then_scores_at_or_above_it_stay(scores, threshold):
    keep = one(scores, threshold=threshold, keep_at_least=0)
    assert keep.tolist() == [score >= threshold for score in scores]


def test_select_when_a_float32_score_equals_the_decimal_threshold_then_it_stays():
    assert one(torch.tensor([0.1, 0.05]), threshold=0.1).tolist() == [True, False]


@quick
@given(scores=SCORES, threshold=SCORE, low=PERCENT, high=PERCENT)
def test_select_when_the_threshold_leaves_the_bounds_then_the_bound_is_a_ratio(
    scores, threshold, low, high
):
    low, high = sorted((low, high))
    n, below = len(scores), sum(score < threshold for score in scores)
    remove = min(max(below, n * low // 100), n * high // 100)
    keep = one(
        scores,
        threshold=threshold,
        min_sparsity=low / 100,
        max_sparsity=high / 100,
        keep_at_least=0,
    )
    assert keep.tolist() == kept_after(scores, remove)


# pools


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int]:
    vectors = draw(st.lists(SCORES, min_size=1, max_size=4))
    grains = draw(st.lists(st.integers(1, 9), min_size=len(vectors), max_size=len(vectors)))
    return vectors, grains, draw(PERCENT)


def walk(vectors: list[list[float]], grains: list[int], budget: Fraction) -> list[list[bool]]:
    """The definition: walk through all scores, least first, until one exceeds the budget."""
    keeps = [[True] * len(vector) for vector in vectors]
    ranked = sorted((s, m, i) for m, vector in enumerate(vectors) for i, s in enumerate(vector))
    for _, m, i in ranked:
        budget -= grains[m]
        if budget < 0:
            break
        keeps[m][i] = False
    return keeps


def pooled(vectors: list[list[float]], grains: list[int], **goal: object) -> list[list[bool]]:
    requests = [
        Request(torch.tensor(v), grain=g, pool=0, **goal)
        for v, g in zip(vectors, grains, strict=True)
    ]
    return [keep.tolist() for keep in select(requests).keeps]


@quick
@given(pool=pools())
def test_select_when_pooled_then_scores_are_ranked_together_weighted_by_grain(pool):
    vectors, grains, percent = pool
    total = sum(len(v) * g for v, g in zip(vectors, grains, strict=True))
    keeps = pooled(vectors, grains, sparsity=percent / 100, keep_at_least=0)
    assert keeps == walk(vectors, grains, Fraction(total * percent, 100))


@quick
@given(pool=pools())
def test_select_when_pooled_then_the_total_is_within_one_grain(pool):
    vectors, grains, percent = pool
    keeps = pooled(vectors, grains, sparsity=percent / 100, keep_at_least=0)
    total = sum(len(v) * g for v, g in zip(vectors, grains, strict=True))
    gone = sum(keep.count(False) * g for keep, g in zip(keeps, grains, strict=True))
    assert 0 <= Fraction(total * percent, 100) - gone < max(grains)


@quick
@given(pool=pools(), low=PERCENT, high=PERCENT)
def test_select_when_pooled_with_bounds_then_every_member_respects_them(pool, low, high):
    vectors, grains, percent = pool
    low, high = sorted((low, high))
    bounds = {"min_sparsity": low / 100, "max_sparsity": high / 100}
    for keep in pooled(vectors, grains, sparsity=percent / 100, **bounds):
        n, gone = len(keep), keep.count(False)
        assert min(n * low // 100, n - 1) <= gone <= n * high // 100


@pytest.mark.parametrize(("sparsity", "gone"), [(0.2, [2, 2]), (0.9, [7, 7])])
def test_select_when_the_goal_is_beyond_the_bounds_then_every_member_is_at_its_bound(
    sparsity, gone
):
    vectors = [[float(i) for i in range(10)], [float(i) for i in range(100, 110)]]
    keeps = pooled(vectors, [1, 1], sparsity=sparsity, min_sparsity=0.2, max_sparsity=0.7)
    assert [keep.count(False) for keep in keeps] == gone


def test_select_when_the_bounds_bite_in_a_pool_then_others_make_up_for_it():
    vectors = [[0.0] * 10, [1.0] * 10]
    keeps = pooled(vectors, [1, 1], sparsity=0.5, max_sparsity=0.6)
    assert [keep.count(False) for keep in keeps] == [6, 4]


def test_select_when_a_pool_would_empty_a_member_then_one_block_stays_and_is_noted():
    requests = [Request(torch.zeros(3), sparsity=0.5, pool=0), Request(torch.ones(3), 0.5, pool=0)]
    result = select(requests, ["small", "large"])
    assert [int(keep.sum()) for keep in result.keeps] == [1, 2]
    assert result.notes == ["small: keeps 1 of 3 units instead of 0 (keep_at_least=1)"]


def test_select_when_a_pool_cannot_reach_its_goal_then_every_member_says_why():
    requests = [Request(torch.rand(2), sparsity=1.0, pool=0) for _ in range(2)]
    assert len(select(requests).notes) == 2


def test_select_when_a_pool_member_has_clusters_then_each_loses_the_same_number():
    requests = [
        Request(torch.rand(12), sparsity=0.5, pool=0, clusters=3),
        Request(torch.rand(12), sparsity=0.5, pool=0),
    ]
    first, second = select(requests).keeps
    assert len(set(first.reshape(3, 4).sum(dim=1).tolist())) == 1
    assert 12 <= int(first.sum() + second.sum()) < 12 + 3


def test_select_when_pinned_in_a_pool_then_they_stay():
    pinned = torch.tensor([True, False, False])
    requests = [
        Request(torch.zeros(3), sparsity=0.5, pool=0, pinned=pinned),
        Request(torch.ones(3), sparsity=0.5, pool=0),
    ]
    result = select(requests)
    assert [keep.tolist() for keep in result.keeps] == [[True, False, False], [False, True, True]]


def test_select_when_pools_differ_then_they_do_not_meet():
    requests = [
        Request(torch.zeros(4), sparsity=0.5, pool="a"),
        Request(torch.ones(4), sparsity=0.25, pool="b"),
        Request(torch.ones(4), sparsity=0.75),
    ]
    assert [int(keep.sum()) for keep in select(requests).keeps] == [2, 3, 1]


@pytest.mark.parametrize("grain", [1, 2.5, 1 / 3])
def test_select_when_grains_are_fractions_then_a_uniform_pool_still_hits_the_count(grain):
    requests = [Request(torch.rand(50), sparsity=0.29, pool=0, grain=grain) for _ in range(2)]
    assert sum(int(keep.sum()) for keep in select(requests).keeps) == 71


# the primitive


@quick
@given(scores=SCORES, data=st.data())
def test_select_count_when_given_a_count_then_kept_and_removed_are_all(scores, data):
    remove = data.draw(st.integers(0, len(scores)))
    keep = select_count(torch.tensor(scores), remove)
    assert keep.tolist() == kept_after(scores, remove)
    assert int(keep.sum()) + remove == len(scores)


def test_select_count_when_large_and_full_of_ties_then_equals_a_stable_sort():
    score = torch.randint(0, 50, (200_000,), generator=torch.Generator().manual_seed(0)).float()
    keep = select_count(score, 123_457)
    expected = torch.ones(200_000, dtype=torch.bool)
    expected[score.argsort(stable=True)[:123_457]] = False
    assert torch.equal(keep, expected)


@pytest.mark.parametrize(
    ("remove", "pinned"), [(-1, None), (4, None), (3, torch.tensor([True, False, False]))]
)
def test_select_count_when_too_many_should_go_then_says_how_many_can(remove, pinned):
    with pytest.raises(ConfigError, match=r"cannot remove -?\d of \d removable"):
        select_count(torch.rand(3), remove, pinned=pinned)


# errors


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_select_when_a_score_is_not_finite_then_names_the_request_and_position(bad):
    requests = [Request(torch.ones(2), 0.5), Request(torch.tensor([1.0, bad, bad]), 0.5)]
    with pytest.raises(ScoreError, match=r"conv2: 2 of 3 scores .* position 1"):
        select(requests, ["conv1", "conv2"])


@pytest.mark.parametrize(
    ("goal", "problem"),
    [
        ({}, "either sparsity or threshold"),
        ({"sparsity": 0.5, "threshold": 1.0}, "either sparsity or threshold"),
        ({"threshold": nan}, "threshold must be finite"),
        ({"sparsity": 30}, r"sparsity must be in \[0, 1\], got 30"),
        ({"sparsity": nan}, r"sparsity must be in \[0, 1\], got nan"),
        ({"sparsity": 0.5, "min_sparsity": 0.6, "max_sparsity": 0.4}, "got 0.6 and 0.4"),
        ({"sparsity": 0.5, "min_sparsity": -1}, "got -1 and None"),
        ({"sparsity": 0.5, "max_sparsity": 2}, "got None and 2"),
        ({"sparsity": 0.5, "clusters": 3}, "4 scores do not fall into 3 equal clusters"),
        ({"sparsity": 0.5, "clusters": 0}, "0 equal clusters"),
        ({"sparsity": 0.5, "keep_at_least": -1}, "keep_at_least must be"),
        ({"sparsity": 0.5, "round_to": 0}, "round_to 1 or more"),
        ({"sparsity": 0.5, "grain": 0.0}, "grain above 0"),
        ({"sparsity": 0.5, "pinned": torch.ones(4)}, r"pinned must be bool of shape \(4,\)"),
    ],
)
def test_select_when_a_request_makes_no_sense_then_says_what_to_give(goal, problem):
    with pytest.raises(ConfigError, match=f"request 0: .*{problem}"):
        one(torch.rand(4), **goal)


@pytest.mark.parametrize("score", [torch.rand(2, 2), torch.tensor([1, 2])])
def test_select_when_the_score_is_no_float_vector_then_says_what_it_is(score):
    with pytest.raises(ConfigError, match="must be a vector of floats, got"):
        one(score, sparsity=0.5)


def test_select_when_several_requests_are_wrong_then_all_problems_come_at_once():
    requests = [
        Request(torch.rand(4), sparsity=2.0, clusters=3),
        Request(torch.rand(4), sparsity=0.5, pool="p"),
        Request(torch.rand(4), sparsity=0.6, pool="p"),
    ]
    with pytest.raises(ConfigError) as caught:
        select(requests, ["a", "b", "c"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["a", "a", "c"]
