"""Which blocks go, and what makes up for them: against what skipping really does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError
from tests.shrinking.test_depth import FORMS

NORMS = ("pre", "post", "none")


class Moved(nn.Module):
    """Adds a constant: what blocks add up to is known."""

    def __init__(self, by: float):
        super().__init__()
        self.by = nn.Parameter(torch.tensor([by, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by * torch.ones_like(x)


def moves(*by: float) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), *map(Moved, by), nn.Linear(3, 3)).eval()


def batches(many: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(8, 5, 3, generator=draw) for _ in range(many)]


def test_error_when_greedy_then_what_went_already_counts():
    net, data = moves(0.4, 0.5, -0.6, 3.0), batches()
    result = sc.drop_blocks(net, 2, data[0], data=data, by="error", greedy=True)
    assert set(result.plan.drop) == {"1", "3"}, "0.4 and -0.6 nearly cancel; 0.4 and 0.5 add up"
    alone = sc.drop_blocks(net, 2, data[0], data=data, by="error")
    assert set(alone.plan.drop) == {"1", "2"}


@pytest.mark.parametrize("by", ["influence", "error"])
@pytest.mark.parametrize("norm", NORMS)
def test_drop_when_chosen_by_a_ranking_then_the_model_is_as_it_was(by, norm):
    build, example, _, _ = FORMS["sequential"]
    torch.manual_seed(0)
    net = build(norm).eval()
    data = [tuple(torch.randn(8, *each.shape[1:]) for each in example) for _ in range(4)]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    result = sc.drop_blocks(net, 1, example, data=data, by=by)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("norm", NORMS)
def test_error_when_one_block_goes_then_no_other_was_cheaper(norm):
    build, example, _, _ = FORMS["sequential"]
    torch.manual_seed(0)
    net = build(norm).eval()
    data = [tuple(torch.randn(8, *each.shape[1:]) for each in example) for _ in range(4)]
    losses = {}
    for block in sc.analyze(net, example).blocks:
        small = sc.drop_blocks(net, [block.name], example).model
        with torch.no_grad():
            gaps = [(small(*each) - net(*each)).square().mean() for each in data]
        losses[block.name] = float(torch.stack(gaps).mean())
    result = sc.drop_blocks(net, 1, example, data=data, by="error")
    assert result.plan.drop == (min(losses, key=lambda name: losses[name]),)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("form", ["sequential", "list", "list, all but one"])
def test_repair_when_blocks_were_dropped_then_outputs_are_nearer_on_fresh_data(form, norm):
    build, example, names, _ = FORMS[form]
    torch.manual_seed(0)
    net = build(norm).eval()

    def drawn(many: int) -> list[tuple[Tensor, ...]]:
        return [tuple(torch.randn(8, *each.shape[1:]) for each in example) for _ in range(many)]

    data, fresh = drawn(16), drawn(4)
    plain = sc.drop_blocks(net, names, example)
    repaired = sc.drop_blocks(net, names, example, data=data, repair="least_squares")
    assert repaired.verification is not None
    assert repaired.verification.passed

    def far(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float((model(*x) - net(*x)).square().mean()) for x in fresh)

    limit = 0.95 if "but one" in form else 0.25  # with one block left there is little to refit
    assert far(repaired.model) < limit * far(plain.model)


def test_result_when_no_mask_silences_a_block_then_it_says_what_it_was_compared_with():
    build, example, names, _ = FORMS["sequential"]
    torch.manual_seed(0)
    shown = " ".join(str(sc.drop_blocks(build("post").eval(), names, example)).split())
    assert f"the masked model that skips {names[0]}" in shown


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["1"], {"greedly": True}, "unknown option 'greedly'. Did you mean 'greedy'"),
        (["1"], {"verify": "no"}, "verify must be True or False"),
        (1.0, {}, "2 blocks cannot go"),
        (None, {}, "a list of names of blocks, how many go"),
        (True, {}, "a list of names of blocks, how many go"),
        ("1", {}, "a list of names of blocks, how many go"),
        ([1], {}, "a list of names of blocks, how many go"),
    ],
)
def test_drop_when_asked_for_nonsense_then_says_so(names, options, said):
    with pytest.raises(ConfigError, match=said):
        sc.drop_blocks(moves(1.0, 2.0), names, batches()[0], data=batches(), **options)


def test_drop_when_no_block_is_named_then_nothing_changes():
    net, x = moves(1.0, 2.0), batches()[0]
    result = sc.drop_blocks(net, [], x, data=batches(), repair="least_squares")
    assert result.repair is None
    assert torch.equal(result.model(x), net(x))
