"""NNI 2.x's one-shot pruners: masks, modes, both signatures, and what they write."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.nni import pruning as three
from secateur.nni.pytorch import pruning as two
from secateur.nni.pytorch.speedup import ModelSpeedup
from tests.nni.v2.rules import CONVS, EXAMPLE, TRAINERS, Loop, kept, trained_by
from tests.trained import net

LEARNING: dict[str, dict[str, Any]] = {
    "SlimPruner": {"training_epochs": 1},
    "TaylorFOWeightPruner": {"training_steps": 3},
    "ActivationAPoZRankPruner": {"training_steps": 3},
    "ActivationMeanRankPruner": {"training_steps": 3},
    "ADMMPruner": {"iterations": 2, "training_epochs": 1},
    "MovementPruner": {"warm_up_step": 1, "cool_down_beginning_step": 4, "training_epochs": 2},
}
NORMS = [{"op_types": ["BatchNorm2d"], "total_sparsity": 0.5}]


def rules(name: str) -> list[dict[str, Any]]:
    return NORMS if name == "SlimPruner" else CONVS


def made(name: str, model: nn.Module, **settings: Any) -> Any:
    if name in LEARNING:
        settings = {"evaluator": Loop(model).evaluator, **LEARNING[name], **settings}
    return getattr(two, name)(model, rules(name), **settings)


EXPORTED = (
    *("LevelPruner", "L1NormPruner", "L2NormPruner", "FPGMPruner", "SlimPruner", "LinearPruner"),
    *("ActivationPruner", "ActivationAPoZRankPruner", "ActivationMeanRankPruner", "ADMMPruner"),
    *("TaylorFOWeightPruner", "PruningScheduler", "AGPPruner", "LotteryTicketPruner"),
    *("SimulatedAnnealingPruner", "MovementPruner", "AutoCompressPruner", "AMCPruner"),
)


@pytest.mark.parametrize("name", EXPORTED)
def test_import_when_nni_2_10_has_a_name_then_it_is_here(name: str) -> None:
    assert getattr(two, name).__name__ == name


@pytest.mark.parametrize("name", ["LevelPruner", "L1NormPruner", "L2NormPruner", "FPGMPruner"])
def test_compress_when_it_looks_at_weights_alone_then_masks_are_those_of_three(name: str) -> None:
    model = net()
    _, masks = made(name, model).compress()
    other = net()
    layers = [{"op_names": list(masks), "sparse_ratio": 0.5}]
    _, expected = getattr(three, name)(other, layers).compress()
    for layer, by_target in masks.items():
        for target, mask in by_target.items():
            assert torch.equal(mask, expected[layer][target]), (layer, target)
    assert "stem.0" not in masks


@pytest.mark.parametrize("name", ["LevelPruner", "L1NormPruner", "FPGMPruner", *LEARNING])
def test_compress_then_every_layer_loses_its_share_and_the_model_has_the_masks(name: str) -> None:
    model = net()
    pruner = made(name, model)
    returned, masks = pruner.compress()
    assert returned is model
    total = sum(by["weight"].numel() for by in masks.values())
    left = sum(float(by["weight"].sum()) for by in masks.values())
    assert left / total == pytest.approx(0.5, abs=0.01)
    if name != "SlimPruner":  # which ranks all scales together
        assert set(kept(masks).values()) == {0.5}
    on = masking.masks_on(model)
    assert all(torch.equal(on[f"{n}.weight"].float(), by["weight"]) for n, by in masks.items())
    pruner._unwrap_model()
    assert not masking.is_masked(model)
    for layer, by_target in masks.items():
        assert not model.get_submodule(layer).weight[by_target["weight"] == 0].any()
    pruner._wrap_model()
    assert masking.is_masked(model)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("granularity", ["fine-grained", "coarse-grained"])
def test_compress_when_a_trainer_holds_the_model_then_admm_reaches_the_ratio(
    kind: str, granularity: str, tmp_path: Path
) -> None:
    model, evaluator = trained_by(kind, tmp_path)
    pruner = three.ADMMPruner(model, CONVS, evaluator, 2, 1, granularity)
    _, masks = pruner.compress()
    assert set(kept(masks).values()) == {0.5}
    rows = [by["weight"].flatten(1) for by in masks.values()]
    assert all(bool((r.amax(1) == r.amin(1)).all()) for r in rows) == (granularity[0] == "c")


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("name", ["ActivationAPoZRankPruner", "ActivationMeanRankPruner"])
def test_compress_when_a_trainer_holds_the_model_then_outputs_rank_it(
    kind: str, name: str, tmp_path: Path
) -> None:
    model, evaluator = trained_by(kind, tmp_path)
    _, masks = getattr(three, name)(model, CONVS, evaluator, 4).compress()
    assert set(kept(masks).values()) == {0.5}
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["ActivationAPoZRankPruner", "ActivationMeanRankPruner"])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_compress_when_weights_stand_still_then_the_least_active_channels_go(
    name: str, activation: str
) -> None:
    model = net()
    loop = Loop(model, lr=0.0)
    twin = copy.deepcopy(model).train()
    layer = "stages.1.conv1"
    seen: list[Tensor] = []
    twin.get_submodule(layer).register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    for step in range(3):
        twin(loop.batch(step)[0])
    active = getattr(F, activation)(torch.cat(seen)).transpose(0, 1).flatten(1)
    score = (active != 0).double().mean(1) if "APoZ" in name else active.double().mean(1)
    settings = {"training_steps": 3, "activation": activation}
    config = [{"op_names": [layer], "sparsity": 0.5}]
    _, masks = getattr(two, name)(model, config, loop.evaluator, **settings).compress()
    gone = set((masks[layer]["weight"].flatten(1).amax(1) == 0).nonzero().flatten().tolist())
    assert gone == set(score.argsort(stable=True)[: len(score) // 2].tolist())


@pytest.mark.slow
def test_compress_when_admm_trains_then_what_goes_was_pulled_to_zero() -> None:
    gone: dict[float, dict[str, float]] = {}
    for rho in (1.0, 1e-9):
        model = net()
        config = [{**CONVS[0], "rho": rho}, CONVS[1]]
        two.ADMMPruner(model, config, Loop(model, 0.05, 20).evaluator, 3, 1).compress()
        below = dict(model.named_parameters())
        masks = masking.masks_on(model).items()
        gone[rho] = {
            n: float(below[n].detach()[~m].norm()) for n, m in masks if n.endswith("weight")
        }
    assert all(gone[1.0][name] < 0.7 * norm for name, norm in gone[1e-9].items()), gone


@pytest.mark.parametrize(
    "name", ["L1NormPruner", "TaylorFOWeightPruner", "ActivationMeanRankPruner"]
)
def test_compress_when_dependency_aware_then_tied_layers_lose_the_same_by_the_least_ratio(
    name: str,
) -> None:
    model = net()
    config = [*CONVS, {"op_names": ["stages.1.conv2"], "sparsity": 0.25}]
    settings = {"mode": "dependency_aware", "dummy_input": EXAMPLE}
    if name in LEARNING:
        settings |= {"evaluator": Loop(model).evaluator, **LEARNING[name]}
    pruner = getattr(two, name)(model, config, **settings)
    _, masks = pruner.compress()
    one = masks["stages.1.conv2"]["weight"].flatten(1).amax(1)
    other = masks["stages.1.shortcut.0"]["weight"].flatten(1).amax(1)
    assert torch.equal(one, other)
    assert float(one.mean()) == 0.75
    assert kept(masks)["stages.1.conv1"] == 0.5
    pruner._unwrap_model()
    small = ModelSpeedup(model, EXAMPLE, masks).speedup_model()
    assert small.stages[1].shortcut[0].out_channels == 12


@pytest.mark.parametrize("blocks", [[4, 1, 1], [2, 4, 1, 1], [8, 1, 1]])
def test_level_when_balanced_then_every_block_loses_as_many(blocks: list[int]) -> None:
    model = net()
    _, masks = two.LevelPruner(model, CONVS, mode="balance", balance_gran=blocks).compress()
    from secateur.scoring.granularity import Tile

    for by_target in masks.values():
        tiles = Tile(tuple(blocks)).rows(by_target["weight"])
        assert set(tiles.sum(1).tolist()) == {tiles.shape[1] / 2}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SlimPruner", {"training_epochs": 1}),
        ("TaylorFOWeightPruner", {"training_batches": 3}),
        ("ActivationAPoZRankPruner", {"training_batches": 3}),
        ("ADMMPruner", {"iterations": 2, "training_epochs": 1}),
        (
            "MovementPruner",
            {"training_epochs": 2, "warm_up_step": 1, "cool_down_beginning_step": 4},
        ),
    ],
)
@pytest.mark.parametrize("positional", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pruner_when_written_the_older_way_then_masks_are_those_of_the_newer(
    name: str, settings: dict[str, Any], positional: bool
) -> None:
    older = net()
    loop = Loop(older)
    parts = {
        "trainer": loop.legacy,
        "traced_optimizer": loop.optimizer,
        "criterion": F.cross_entropy,
    }
    if positional:
        pruner = getattr(two, name)(older, rules(name), *parts.values(), *settings.values())
    else:
        pruner = getattr(two, name)(older, rules(name), **parts, **settings)
    _, masks = pruner.compress()
    newer = net()
    loop = Loop(newer)
    loop.evaluator.lr_schedulers = None
    renamed = {k.replace("training_batches", "training_steps"): v for k, v in settings.items()}
    _, expected = getattr(two, name)(newer, rules(name), loop.evaluator, **renamed).compress()
    for layer, by_target in masks.items():
        assert torch.equal(by_target["weight"], expected[layer]["weight"]), layer


@pytest.mark.parametrize(
    "name", ["LevelPruner", "L1NormPruner", "FPGMPruner", "TaylorFOWeightPruner"]
)
def test_compress_when_masks_were_loaded_then_nothing_comes_back(name: str) -> None:
    model = net()
    half = made(name, model)
    half.compress()
    given = half.masks_of_layers()
    half._unwrap_model()
    with torch.no_grad():  # what is gone is the largest now
        for layer, by_target in given.items():
            model.get_submodule(layer).weight[by_target["weight"] == 0] = 9.0
    more = [{**CONVS[0], "total_sparsity": 0.75}, CONVS[1]]
    settings = {"evaluator": Loop(model).evaluator, **LEARNING[name]} if name in LEARNING else {}
    pruner = getattr(two, name)(None, None, **settings)
    pruner.reset(model, more)
    pruner.load_masks(given)
    _, masks = pruner.compress()
    assert set(kept(masks).values()) == {0.25}
    for layer, by_target in masks.items():
        assert not bool((by_target["weight"] > given[layer]["weight"]).any()), layer


def test_export_model_then_both_files_are_safetensors_that_speedup_reads(tmp_path: Path) -> None:
    model = net()
    pruner = made("L1NormPruner", model)
    pruner.compress()
    pruner.export_model(tmp_path / "model.pth", tmp_path / "masks.pth")
    state = load_file(tmp_path / "model.pth")
    fresh = net(seed=1)
    fresh.load_state_dict(state)
    assert float((fresh.stages[0].conv1.weight == 0).float().mean()) == 0.5
    small = ModelSpeedup(fresh, EXAMPLE, str(tmp_path / "masks.pth")).speedup_model()
    assert small.stages[0].conv1.out_channels == 4


def test_show_pruned_weights_then_each_layer_is_one_line(caplog: Any) -> None:
    pruner = made("L1NormPruner", net())
    pruner.compress()
    with caplog.at_level(logging.INFO):
        pruner.show_pruned_weights()
    assert "stages.0.conv1: 4 of 8 along dimension 0 are left" in caplog.messages
    assert len(caplog.messages) == len(pruner.get_modules_wrapper())


class Broken(Exception):
    pass


@pytest.mark.parametrize("name", LEARNING)
def test_compress_when_the_training_fails_then_the_model_is_without_masks(name: str) -> None:
    model = net()
    loop = Loop(model)

    def broken(*_: Any) -> None:
        raise Broken

    loop.evaluator.training_func = broken
    settings = LEARNING[name]
    pruner = getattr(two, name)(model, rules(name), loop.evaluator, **settings)
    with pytest.raises(Broken):
        pruner.compress()
    assert not masking.is_masked(model)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: two.L1NormPruner(m, CONVS, mode="global"), "mode must be one of normal, dep"),
        (lambda m: two.L1NormPruner(m, CONVS, mode="dependency_aware"), "needs dummy_input"),
        (lambda m: two.LevelPruner(m, CONVS, mode="balance"), "balance_gran=[…] goes"),
        (lambda m: two.LevelPruner(m, CONVS, balance_gran=[4]), "with mode='balance'"),
        (lambda m: two.ADMMPruner(m, CONVS, None, 1, 1), "give it an evaluator"),
        (lambda m: two.ADMMPruner(m, CONVS, Loop(m).evaluator, 0, 1), "iterations must be a whole"),
        (lambda m: two.ADMMPruner(m, CONVS, Loop(m).evaluator, 1, 1, "fine"), "'fine-grained'"),
        (lambda m: two.SlimPruner(m, NORMS, Loop(m).evaluator, training_steps=1), "no argument"),
        (lambda m: two.L1NormPruner(None, CONVS), "or neither"),
        (lambda m: two.L1NormPruner(None, None).compress(), "no model yet"),
        (
            lambda m: two.ActivationAPoZRankPruner(m, NORMS, Loop(m).evaluator, 1, "tanh"),
            "activation must be one of relu, gelu, relu6",
        ),
        (
            lambda m: two.ActivationAPoZRankPruner(
                m, [{"op_types": ["Embedding"], "sparsity": 0.5}], Loop(m).evaluator, 1
            ),
            "not of Embedding",
        ),
        (
            lambda m: two.MovementPruner(m, CONVS, Loop(m).evaluator, 1, 2),
            "training_epochs or training_steps",
        ),
    ],
)
def test_pruner_when_it_cannot_work_then_says_why(make: Any, words: str) -> None:
    model = nn.ModuleDict({"net": net(), "table": nn.Embedding(4, 8)})
    with pytest.raises(ConfigError) as caught:
        make(model)
    assert words in str(caught.value)


def test_apoz_when_the_activation_never_makes_zeros_then_warns() -> None:
    model = net()
    with pytest.warns(UserWarning, match="gelu never makes zeros"):
        two.ActivationAPoZRankPruner(model, CONVS, Loop(model).evaluator, 1, "gelu")
