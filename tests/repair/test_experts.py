"""Repair beside a router: what is repaired is the model that never chooses what went."""

from __future__ import annotations

from typing import Any

import pytest

import secateur as sc
from secateur.repair.quality import distance
from tests.mixtures import FORMS, batches, mixture

WHAT: dict[str, dict[str, Any]] = {
    "experts": {"what": ["experts"]},
    "experts and neurons": {"what": ["experts", "width"], "max_sparsity": 0.5},
}


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize(("router", "end"), FORMS)
def test_repair_when_experts_went_then_its_record_is_of_the_smaller_model(router, end, what):
    model, data = mixture(router, end), batches(8)
    for repair in ("least_squares", "bias"):
        settings = {**WHAT[what], "criterion": "activation", "repair": repair}
        result = sc.prune(model, data[0], 0.34, data=data, **settings)
        assert len(result.model.up) == 4
        assert result.verification.exact
        assert result.verification.passed
        found = distance(model, result.model, data[3::4]).error
        assert result.repair.after.error == pytest.approx(found, rel=1e-3, abs=1e-6)
        assert result.repair.after.error <= result.repair.before.error * (1 + 1e-6)


def test_error_when_experts_are_weighed_then_it_is_that_of_the_smaller_model():
    """A router that may still choose a masked expert makes another error than the cut."""
    model, data = mixture("shares_of_the_chosen"), batches()
    config = sc.Config(criterion="contribution", sparsity=0.34)
    pruner = sc.Pruner(model, config, data[0], trained=False)
    pruner.calibrate(data)
    pruner.decide()
    keep = pruner.keeps["router"]
    pruner.budget.known.batches = data
    found = pruner.candidates.error({0: keep})
    small = pruner.finish(inplace=False).model
    assert found == pytest.approx(distance(model, small, data).kl, rel=1e-3)
