"""Whole experts go: equal to the model that never chooses them, whatever the router looks like."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import secateur as sc
from secateur.errors import GoalError, PlanError
from secateur.runtime.forbidding import forbidding
from secateur.shrinking import cut_and_verify
from tests.mixtures import FORMS, Mixture, batches, mixture
from tests.zoo import torchvision_models

KEPT = (0, 2, 4, 5)


@pytest.mark.parametrize(("router", "end"), FORMS)
def test_experts_when_some_go_then_it_is_the_model_that_never_chooses_them(router, end):
    model, x = mixture(router, end), batches()[0]
    structure = sc.analyze(model, x)
    group = structure["router"]
    assert group.chosen
    assert group.unchosen
    plan = sc.Plan({"router": KEPT})
    result = sc.apply_plan(model, plan, x)
    assert result.verification.exact
    assert result.verification.passed
    assert "never chooses" in result.compared_with
    before = model(x)
    with forbidding(model, plan.forbidden(structure)):
        meant = model(x)
    torch.testing.assert_close(result.model(x), meant)
    assert not torch.allclose(meant, before, atol=1e-3), "the test would see nothing"
    assert torch.equal(model(x), before)


def test_cut_when_somebody_masked_experts_with_zeros_then_what_that_computes_is_compared():
    """A router may still choose them there, and they return zeros: the cut does another thing."""
    model, x = mixture(), batches()[0]
    structure, plan = sc.analyze(model, x), sc.Plan({"router": KEPT})
    masks = plan.masks(structure)
    how: dict[str, Any] = {"notes": [], "verify": True, "as_it_is": True}
    result = cut_and_verify(model, structure, plan, masks, x, **how)
    assert not result.verification.exact
    assert result.verification.difference > 1e-3
    assert any("inexact: router" in note for note in result.notes)
    assert "never chooses" not in result.compared_with
    meant = sc.apply_plan(mixture(), plan, x)
    assert any("never chooses what went" in note for note in meant.notes)


def test_experts_when_they_are_in_groups_then_each_keeps_as_many():
    model, x = mixture("of_the_best_groups"), batches()[0]
    structure = sc.analyze(model, x)
    experts = [group for group in structure.groups if group.chosen]
    assert [group.size for group in experts] == [2, 3]
    within = experts[1].name
    with pytest.raises(PlanError, match="at least 2"):
        sc.Plan({within: (1,)}).check(structure)
    result = sc.apply_plan(model, sc.Plan({within: (0, 2)}), x)
    assert result.verification.exact
    assert result.verification.passed
    assert len(result.model.up) == 4
    meant = sc.prune(model, x, 0.34, "contribution", data=batches())
    assert meant.verification.exact
    assert len(meant.model.up) == 4


def test_experts_when_fewer_stay_than_are_chosen_then_that_is_said_first():
    structure = sc.analyze(mixture(), batches()[0])
    with pytest.raises(PlanError, match="at least 2 positions, not 1"):
        sc.apply_plan(mixture(), sc.Plan({"router": (3,)}), batches()[0])
    assert structure["router"].least == 2
    with pytest.raises(GoalError, match="at most 4 can"):
        sc.prune(mixture(), batches()[0], 0.9, "frequency", data=batches())


def test_experts_when_a_sum_of_all_is_divided_by_then_that_stays_inexact():
    """A masked sigmoid is a half, and what the sum of all loses no ban gives back."""

    def divided(m: Any, logits: torch.Tensor) -> Any:
        scores = logits.sigmoid()
        return (scores / scores.sum(-1, keepdim=True)).topk(2, -1)

    model, x = Mixture(divided).eval(), batches()[0]
    group = sc.analyze(model, x)["router"]
    assert group.chosen
    assert not group.unchosen
    result = sc.apply_plan(model, sc.Plan({"router": KEPT}), x)
    assert not result.verification.exact
    assert result.verification.difference > 1e-3
    assert any("inexact" in note for note in result.notes)


CLASSES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    "glm4_moe": {
        "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "n_shared_experts": 1, "moe_intermediate_size": 16, "head_dim": 8,
    },
}  # fmt: skip
SMALL = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
    "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k == "mixtral" else pytest.mark.slow) for k in CLASSES]
)
def test_experts_when_a_class_of_transformers_loses_some_then_the_stock_class_loads_it(
    kind, tmp_path
):
    torchvision_models()  # transformers imports it
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(kind, **SMALL, **CLASSES[kind])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    x = {"input_ids": torch.randint(1, 48, (2, 12)), "use_cache": False}
    data = [{"input_ids": torch.randint(1, 48, (4, 32)), "use_cache": False} for _ in range(2)]
    result = sc.prune(model, x, 0.5, "contribution", data=data, repair="none")
    assert result.verification.exact
    assert result.rebuilt, result.loads_with
    result.model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**x).logits, result.model(**x).logits)
    again.generate(x["input_ids"], max_new_tokens=3, do_sample=False)
