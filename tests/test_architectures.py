"""Every architecture of the coverage list that comes from transformers, pruned by the one call."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import NoMatchError
from secateur.graph.outputs import results_of, tensors_of

transformers = pytest.importorskip("benchmarks.models.transformers")
CALLS: dict[str, dict[str, Any]] = {
    "half": {},
    "widths of heads": {"grid": "fine"},
    "uniform": {"uniform": True, "of": "params", "sparsity": 0.25},
    "all, globally": {"inexact": True, "scope": "global", "sparsity": 0.3},
}


def build(name: str) -> tuple[nn.Module, Any]:
    from benchmarks.models import build

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # transformers'
        return build("transformers", name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", transformers.MODELS)
def test_prune_when_a_model_runs_then_it_is_pruned_and_checked(name, call):
    model, example = build(name)
    settings = {"sparsity": 0.5} | call
    if not call.get("inexact") and not sc.analyze(model, example).exact:
        with pytest.raises(NoMatchError, match="nothing that can be pruned"):
            sc.prune(model, example, **settings)
        return
    result = sc.prune(model, example, **settings)
    assert result.verification is not None
    assert result.verification.passed
    assert result.after.params < result.before.params
    if call.get("uniform"):
        kinds: dict[str, set[int]] = {}
        for group, kept in result.plan.counts.items():
            kinds.setdefault(re.sub(r"\d+", "#", group), set()).add(kept)
        size = {n: result.structure[n].size for n in result.plan.counts}
        assert all(
            len(kept) == 1
            for kind, kept in kinds.items()
            if len({s for n, s in size.items() if re.sub(r"\d+", "#", n) == kind}) == 1
        )


def remembered(model: nn.Module, example: dict[str, Any]) -> int:
    """Return how many numbers are in the cache that a forward hands out."""
    with torch.no_grad():
        out = model(**example, use_cache=True)
    everything, results = tensors_of(out), results_of(model, out)
    return sum(x.numel() for x in everything) - sum(x.numel() for x in results)


WHOLE = {"falcon"}
"""Nothing exact in their attention: heads looked up by number."""

WRITERS = [
    pytest.param(name, marks=() if name in ("llama", "mamba") else pytest.mark.slow)
    for name, (kind, _) in transformers.ARCHITECTURES.items()
    if kind in ("decoder", "sequence")
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_generate_when_the_cache_is_narrower_then_the_text_is_that_without_it(name):
    model, example = build(name)
    small = sc.prune(model, example, sparsity=0.5).model
    before, after = remembered(model, example), remembered(small, example)
    assert 0 < after <= before
    assert (after == before) == (name in WHOLE)
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    written = [
        small.generate(example["input_ids"], use_cache=cache, **options) for cache in (True, False)
    ]
    assert torch.equal(*written)
