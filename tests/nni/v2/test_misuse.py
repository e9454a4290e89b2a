"""NNI 2.x's pruners in the wrong order and with the wrong arguments: each says what is wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.nni import pruning as three
from secateur.nni.pytorch import pruning as two
from secateur.nni.pytorch.pruning.tools import AGPTaskGenerator
from tests.nni.v2.rules import CONVS, Loop
from tests.trained import net

METHODS: dict[str, tuple[Any, ...]] = {
    "compress": (),
    "load_masks": ({},),
    "update_masks": ({},),
    "get_masks": (),
    "generate_masks": (),
    "masks_of_layers": (),
    "parameter_masks": (),
    "get_modules_wrapper": (),
    "show_pruned_weights": (),
    "export_model": ("model.safetensors",),
    "wrap_model": (),
    "unwrap_model": (),
    "_wrap_model": (),
    "_unwrap_model": (),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_pruner_when_it_has_no_model_yet_then_each_method_says_so(
    method: str, learns: bool, tmp_path: Path
) -> None:
    pruner: Any = two.L1NormPruner(None, None)
    if learns:
        pruner = two.ADMMPruner(None, None, Loop(net()).evaluator, 1, 1)
    with pytest.raises(ConfigError, match=r"no model yet: call reset\(model, config_list\)"):
        getattr(pruner, method)(*METHODS[method])
    assert not list(tmp_path.iterdir())


def test_iterative_pruner_when_it_has_no_model_yet_then_there_is_no_result(caplog: Any) -> None:
    pruner = two.SimulatedAnnealingPruner(None, None, Loop(net()).evaluator)
    assert pruner.get_best_result() is None
    assert AGPTaskGenerator(3).get_best_result() is None
    pruner.export_model("model.pth")
    assert "nothing is exported" in caplog.text
    with pytest.raises(ConfigError, match="no model yet"):
        pruner.compress()


@pytest.mark.parametrize("dim", [2, -3, "0", None, True])
def test_show_pruned_weights_when_there_is_no_such_dimension_then_names_the_layer(dim: Any) -> None:
    pruner = two.L1NormPruner(nn.Sequential(nn.Linear(4, 4)), [{"op_names": ["0"], "sparsity": 0}])
    pruner.compress()
    with pytest.raises(ConfigError, match="'0' has 2 dimensions"):
        pruner.show_pruned_weights(dim)


def test_show_pruned_weights_when_counted_from_behind_then_of_each_layers_own_last(
    caplog: Any,
) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    pruner = two.L1NormPruner(model, [{"op_types": ["Conv2d", "Linear"], "sparsity": 0.5}])
    pruner.compress()
    with caplog.at_level(logging.INFO):
        pruner.show_pruned_weights(-1)
    assert [message.split(" along")[0] for message in caplog.messages] == [
        "0: 3 of 3",
        "2: 16 of 16",
    ]


ADMM = {"iterations": 1, "training_epochs": 1}


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


WRONG: list[tuple[Any, str]] = [
    (
        lambda m, e: two.ADMMPruner(m, CONVS, e, 2, 1, iterations=7),
        "ADMMPruner got 'iterations' twice",
    ),
    (
        lambda m, e: two.ADMMPruner(m, CONVS, print, _sgd(m), None, 2, 1, iterations=7),
        "got 'iterations' twice, by position and by name",
    ),
    (lambda m, e: two.AGPPruner(m, CONVS, "l1", 2, model=m), "AGPPruner got 'model' twice"),
    (lambda m, e: two.AGPPruner(m, CONVS, ["l1"], 2), "must be one of level, l1"),
    (lambda m, e: two.AGPPruner(m, CONVS, "l1", 2, pruning_params=5), "must be a dict, got 5"),
    (lambda m, e: two.AutoCompressPruner(m, CONVS, 1, None, {"evaluator": e}), "admm_params must"),
    (
        lambda m, e: two.AutoCompressPruner(m, CONVS, 1, {"evaluator": e, **ADMM}, None),
        "sa_params must be a dict, got None",
    ),
    (lambda m, e: two.AMCPruner(1, m, CONVS, e, ddpg_params=[1]), "ddpg_params must be a dict"),
    *(
        (
            lambda m, e, sizes=sizes: two.LevelPruner(m, CONVS, "balance", sizes),
            f"balance_gran must be sizes of at least 1 such as [1, 16], got {sizes!r}",
        )
        for sizes in (4, "ab", [], [0], [2.5], [True], ["4"])
    ),
    *(
        (
            lambda m, e, first=first: two.MovementPruner(m, CONVS, e, first, 3, training_steps=4),
            f"warm_up_step must be a whole number of at least 0, got {first!r}",
        )
        for first in (-5, "a", 0.5, None)
    ),
    (
        lambda m, e: two.MovementPruner(m, CONVS, e, 1, "b", training_steps=4),
        "cool_down_beginning_step must be a whole",
    ),
    (lambda m, e: two.MovementPruner(m, CONVS, e, 1, 3, training_steps=0), "training_steps must"),
    (
        lambda m, e: two.MovementPruner(m, CONVS, e, 1, 3, training_steps=4, regular_scale="x"),
        "regular_scale must be a number of at least 0",
    ),
    (lambda m, e: three.MovementPruner(m, CONVS, e, -5, 3), "at least 0, got -5"),
    (lambda m, e: three.MovementPruner(m, CONVS, e, "a", 3), "warmup_step must be a whole number"),
    (
        lambda m, e: two.SlimPruner(m, CONVS, e, 1, scale="x"),
        "scale must be a number of at least 0, got 'x'",
    ),
    (lambda m, e: two.SlimPruner(m, CONVS, e, 1, scale=float("nan")), "scale must be a number"),
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_pruner_when_an_argument_is_wrong_then_names_it(make: Any, words: str) -> None:
    model = net()
    with pytest.raises(ConfigError) as caught:
        make(model, Loop(model).evaluator)
    assert words in str(caught.value)
