"""A masked model computes, bit for bit, what modules compute that multiply by hand in each call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.masks.masking import dense, masks_on, put_on
from tests.by_hand import by_hand
from tests.uses import WAYS, everything, net


def masks() -> dict[str, Tensor]:
    """Whole channels of the convolutions and norms, and single weights of the head."""
    generator = torch.Generator().manual_seed(1)
    keep = {name: torch.rand(8, generator=generator) > 0.4 for name in ("stem", "block")}
    found = {}
    for name, parameter in net().named_parameters():
        kept = keep.get(name.split(".")[0])
        if kept is None:
            found[name] = torch.rand(parameter.shape, generator=generator) > 0.4
        else:
            found[name] = kept.view(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)
    return found


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's, of its own
@pytest.mark.parametrize("way", WAYS)
def test_masked_model_when_it_is_used_then_all_is_as_if_multiplied_by_hand(way: str) -> None:
    use, on = WAYS[way], masks()
    masked, reference = net(), by_hand(net(), on)
    put_on(masked, on)
    expected = list(everything(reference, use(reference)))  # type: ignore[arg-type]
    found = list(everything(masked, use(masked)))
    names = [n for n, _ in masked.named_parameters()]
    assert len(found) == len(expected)
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(mine, theirs), f"{i} of {len(found)}; parameters {names}"
    assert_masked(masked, on)


def assert_masked(model: nn.Module, on: dict[str, Tensor]) -> None:
    """What somebody reads is masked, now, and what is below is there."""
    saved = model.state_dict()
    assert masks_on(model).keys() == on.keys()
    for name, parameter in model.named_parameters():
        path, _, tensor = name.rpartition(".")
        module = model.get_submodule(path)
        for value in (getattr(module, tensor), saved[name]):
            assert torch.equal(value, parameter * on[name]), name
        assert not getattr(module, tensor)[~on[name]].any(), name
        assert dense(module, tensor)[~on[name]].any(), name
