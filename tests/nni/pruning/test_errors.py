"""What goes wrong, and what is odd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError, NoMatchError, ScoreError
from secateur.nni.pruning import FPGMPruner
from tests.nni.pruning.rules import compressed, every_pruner


@every_pruner
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_compress_when_a_weight_is_not_finite_then_score_error_and_the_model_is_untouched(
    model, kind, value
):
    with torch.no_grad():
        model.wide.weight[1, 0, 0, 0] = value
    keys = list(model.state_dict())
    conv = model.conv.weight.detach().clone()
    pruner = kind(model, [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    with pytest.raises(ScoreError, match=r"wide\.weight"):
        pruner.compress()
    assert list(model.state_dict()) == keys
    assert torch.equal(model.conv.weight, conv)


@every_pruner
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"op_names": ["cov"], "sparse_ratio": 0.5}, "Did you mean 'conv'"),
        ({"op_types": ["Conv2D"], "sparse_ratio": 0.5}, "Did you mean 'Conv2d'"),
    ],
)
def test_init_when_a_selector_matches_nothing_then_names_the_nearest(model, kind, entry, message):
    with pytest.raises(NoMatchError, match=message):
        kind(model, [entry])


@every_pruner
def test_init_when_the_config_list_is_wrong_then_all_problems_are_told(model, kind):
    with pytest.raises(ConfigError) as caught:
        kind(model, [{"op_names": ["conv"], "sparsty_ratio": 1}, {"sparse_ratio": 2}])
    assert len(caught.value.problems) >= 3


def test_fpgm_when_a_layer_is_wide_then_no_cube_of_distances_is_built():
    layer = nn.Conv2d(256, 1024, 3, bias=False)  # n x n x d would be 9.6 GB
    masks = compressed(FPGMPruner, layer, {"op_types": ["Conv2d"], "sparse_ratio": 0.5})
    assert int(masks[""]["weight"].flatten(1).amax(1).sum()) == 512


@every_pruner
def test_compress_when_the_model_is_one_layer_then_its_name_is_empty(kind):
    layer = nn.Linear(6, 4)
    pruner = kind(layer, [{"op_types": ["Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    assert float(masks[""]["weight"].mean()) == 0.5
    pruner.update_masks(masks)
    assert list(pruner.unwrap_model().state_dict()) == ["weight", "bias"]


@every_pruner
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_compress_when_weights_are_of_another_dtype_then_they_stay_so(model, kind, dtype):
    model.to(dtype)
    pruner = kind(model, [{"op_types": ["Conv2d", "Linear"], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    assert model.conv.weight.dtype == dtype
    assert float(masks["conv"]["weight"].mean()) == 0.5
    assert {p.dtype for p in pruner.unwrap_model().parameters()} == {dtype}
