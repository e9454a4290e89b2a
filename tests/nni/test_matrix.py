"""Every method in every setting, on real digits: scored, scheduled, trained, cut and verified.

{Level, L1, L2, FPGM, Slim, Taylor, Movement} x {one-shot, Linear, AGP} x {own loop, Lightning,
Hugging Face} x {module-wise, global, dependency groups}.
"""

from __future__ import annotations

from itertools import product
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.nni.pruning import (
    AGPPruner,
    FPGMPruner,
    L1NormPruner,
    L2NormPruner,
    LevelPruner,
    LinearPruner,
    MovementPruner,
    Pruner,
    SlimPruner,
    TaylorPruner,
)
from secateur.nni.speedup import ModelSpeedup
from secateur.nni.utils import auto_set_dependency_group_ids
from tests import trained
from tests.trained import Live

RATIO = 0.5
STEPS = 6  # of the optimizer until the goal

METHODS = {
    "level": lambda model, config, evaluator: LevelPruner(model, config, evaluator),
    "l1": lambda model, config, evaluator: L1NormPruner(model, config, evaluator),
    "l2": lambda model, config, evaluator: L2NormPruner(model, config, evaluator),
    "fpgm": lambda model, config, evaluator: FPGMPruner(model, config, evaluator),
    "slim": lambda model, config, evaluator: SlimPruner(model, config, evaluator, STEPS),
    "taylor": lambda model, config, evaluator: TaylorPruner(model, config, evaluator, STEPS),
    "movement": lambda model, config, evaluator: MovementPruner(model, config, evaluator, 2, STEPS),
}
SCHEDULES = {
    "one-shot": lambda pruner: pruner,
    "linear": lambda pruner: LinearPruner(pruner, STEPS // 3, 3),
    "agp": lambda pruner: AGPPruner(pruner, STEPS // 3, 3),
}
SCOPES = ["module", "global", "dependency"]

ALL = list(product(METHODS, SCHEDULES, trained.LIVE, SCOPES))
PAIRWISE = [  # every value with every other, but for the trainers, which are slow to start
    ("level", "agp", "loop", "global"),
    ("l1", "one-shot", "loop", "dependency"),
    ("l2", "linear", "loop", "dependency"),
    ("fpgm", "agp", "loop", "dependency"),
    ("slim", "one-shot", "loop", "global"),
    ("slim", "agp", "lightning", "dependency"),
    ("taylor", "one-shot", "hf", "module"),
    ("taylor", "linear", "lightning", "global"),
    ("movement", "one-shot", "loop", "module"),
    ("movement", "agp", "hf", "dependency"),
]


def config_list(live: Live, method: str, scope: str) -> list[dict[str, Any]]:
    kind = "BatchNorm2d" if method == "slim" else "Conv2d"
    entry: dict[str, Any] = {"op_types": [kind], "sparse_ratio": RATIO}
    if scope == "global":
        entry["global_group_id"] = "all"
    if scope == "dependency":  # in which layers of any shape must have equally many scores
        entry["granularity"] = "out_channel"
        return auto_set_dependency_group_ids(live.model, [entry], live.example)
    return [entry]


def assert_combination(method: str, schedule: str, trainer: str, scope: str, path: Path) -> None:
    live = trained.live(trainer, path)
    config = config_list(live, method, scope)
    pruner: Pruner = METHODS[method](live.model, config, live.evaluator)
    pruner = SCHEDULES[schedule](pruner)
    model, masks = pruner.compress(STEPS + 2, None) if pruner.trains else pruner.compress()
    assert model is live.model
    assert live.hooks() == 0

    scored = [t for t in pruner.targets if t.align is None]
    assert_ratio(scored, masks, scope)
    families: dict[Any, list[Tensor]] = {}
    for target in scored:
        if target.dependency_group_id is not None:
            mask = masks[target.module][target.target]
            rows = target.granularity.rows(mask).amax(1)
            families.setdefault(target.dependency_group_id, []).append(rows)
    assert all(torch.equal(rows, members[0]) for members in families.values() for rows in members)
    assert scope != "dependency" or any(len(members) > 1 for members in families.values())

    masked = live.logits(trained.digits().test_images)
    params = sum(p.numel() for p in model.parameters())
    bare = pruner.unwrap_model()
    assert bare is live.model
    assert torch.equal(live.logits(trained.digits().test_images), masked)
    speedup = ModelSpeedup(model, live.example, masks)
    speedup.speedup_model()
    assert speedup.result.verification.passed
    if method != "level" or scope == "dependency":
        assert sum(p.numel() for p in model.parameters()) < params
    if method == "slim":  # elsewhere a norm's bias goes as well, which no padding can make up for
        cut = live.logits(trained.digits().test_images)
        torch.testing.assert_close(cut, masked, atol=1e-4, rtol=1e-4)


def assert_ratio(scored: list[Any], masks: dict[str, dict[str, Tensor]], scope: str) -> None:
    """Exactly the ratio, to one block."""
    blocks = {t.name: t.granularity.rows(masks[t.module][t.target]).amax(1) for t in scored}
    if scope != "global":
        for name, kept in blocks.items():
            assert int((kept == 0).sum()) == floor(len(kept) * RATIO), name
        return
    grains = {t.name: masks[t.module][t.target].numel() / t.units for t in scored}
    total = sum(grains[name] * len(kept) for name, kept in blocks.items())
    gone = sum(grains[name] * int((kept == 0).sum()) for name, kept in blocks.items())
    assert RATIO * total - max(grains.values()) <= gone <= RATIO * total


@pytest.mark.parametrize(("method", "schedule", "trainer", "scope"), PAIRWISE)
def test_compress_when_method_meets_setting_then_ratio_masks_and_cut_are_right(
    method: str, schedule: str, trainer: str, scope: str, tmp_path: Path
) -> None:
    assert_combination(method, schedule, trainer, scope, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "schedule", "trainer", "scope"), [c for c in ALL if c not in PAIRWISE]
)
def test_compress_when_any_method_meets_any_setting_then_ratio_masks_and_cut_are_right(
    method: str, schedule: str, trainer: str, scope: str, tmp_path: Path
) -> None:
    assert_combination(method, schedule, trainer, scope, tmp_path)
