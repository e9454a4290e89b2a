"""Which blocks go, and what makes up for them: against what skipping really does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import secateur as sc
from secateur.errors import ConfigError
from secateur.repair.quality import distance
from secateur.shrinking.rankings import block_rankings
from tests.shrinking.test_depth import FORMS, Listed

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
@pytest.mark.parametrize(
    "form",
    [
        "sequential",
        pytest.param("list", marks=pytest.mark.slow),
        pytest.param("list, all but one", marks=pytest.mark.slow),
    ],
)
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


def test_error_when_blocks_are_ranked_then_the_dense_model_runs_once_on_each_batch(monkeypatch):
    ran: list[tuple[str, ...]] = []
    forward = Moved.forward

    def counted(self: Moved, x: Tensor) -> Tensor:
        ran.append(tuple(name for name, each in net.named_modules() if each is self))
        return forward(self, x)

    net, data = moves(0.4, 0.5, -0.6), batches()
    blocks = sc.analyze(net, data[0]).blocks
    monkeypatch.setattr(Moved, "forward", counted)
    assert len(block_rankings["error"](net, blocks, data)) == 3
    assert ran.count(("1",)) == len(data)


@pytest.mark.parametrize("many", [1, 2, 5])
def test_error_when_batches_come_in_any_way_then_it_is_that_of_each_block_alone(many):
    net, data = moves(0.4, 0.5, -0.6), torch.cat(batches()).chunk(many)
    blocks = sc.analyze(net, data[0]).blocks
    together = block_rankings["error"](net, blocks, data)
    alone = [block_rankings["error"](net, [block], [torch.cat(data)])[0] for block in blocks]
    assert together == pytest.approx(alone)
    small = [sc.drop_blocks(net, [block.name], data[0]).model for block in blocks]
    assert together == pytest.approx([distance(net, each, data).error for each in small], rel=1e-4)


def test_influence_when_a_block_turns_its_input_then_it_is_one_minus_the_cosine():
    net, data = moves(0.4, 3.0), batches()
    blocks = sc.analyze(net, data[0]).blocks
    wanted = []
    with torch.no_grad():
        x = net[0](torch.cat(data))
        for block in net[1:3]:
            wanted.append(float((1 - cosine_similarity(x, block(x), -1)).mean()))
            x = block(x)
    assert block_rankings["influence"](net, blocks, data) == pytest.approx(wanted, abs=1e-5)


class Padded(nn.Module):
    """Layers over a text, whose mask says which tokens are none."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Turned() for _ in range(3))

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Turned(nn.Module):
    """Adds a part of its input's channels, in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x)


@pytest.mark.parametrize("by", ["influence", "error"])
def test_ranking_when_tokens_are_padding_then_they_do_not_count(by):
    torch.manual_seed(0)
    net = Padded().eval()
    x, mask = torch.randn(4, 6, 3), torch.ones(4, 6, dtype=torch.long)
    short = {"x": x[:, :4], "attention_mask": mask[:, :4]}
    filled = {"x": torch.cat([x[:, :4], 100 * x[:, 4:]], 1), "attention_mask": mask.clone()}
    filled["attention_mask"][:, 4:] = 0
    blocks = sc.analyze(net, short).blocks
    assert len(blocks) == 3
    whole = block_rankings[by](net, blocks, [short])
    assert block_rankings[by](net, blocks, [filled]) == pytest.approx(whole)


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("by", ["influence", "error"])
def test_drop_when_two_are_chosen_then_notes_tell_the_scores_in_their_order(by, greedy):
    net, data = moves(0.4, 0.5, -0.6, 3.0), batches()
    result = sc.drop_blocks(net, 2, data[0], data=data, by=by, greedy=greedy)
    blocks = {block.name: block for block in sc.analyze(net, data[0]).blocks}
    first, second = result.plan.drop
    scores = dict(zip(blocks, block_rankings[by](net, [*blocks.values()], data), strict=True))
    assert first == min(scores, key=lambda name: scores[name])
    if greedy:
        skipped = {first: (blocks[first].position, blocks[first].returns)}
        left = [block for name, block in blocks.items() if name != first]
        again = block_rankings[by](net, left, data, skipped)
        scores = dict(zip([block.name for block in left], again, strict=True))
        assert second == min(scores, key=lambda name: scores[name])
    told = [note for note in result.notes if "dropped by" in note]
    assert [note.partition(":")[0] for note in told] == [first, second]
    assert f"{second}: dropped by {by}, {scores[second]:.3g}" in told


@pytest.mark.parametrize(
    ("by", "greedy"),
    [
        ("influence", False),
        ("error", True),
        pytest.param("influence", True, marks=pytest.mark.slow),
        pytest.param("error", False, marks=pytest.mark.slow),
    ],
)
def test_repair_when_blocks_are_chosen_then_held_out_batches_say_that_it_is_nearer(by, greedy):
    torch.manual_seed(0)
    net = Listed("pre", depth=4).eval()
    with torch.no_grad():  # behind the last layers nothing adds to the stream any more
        for name, tensor in net.layers[:2].named_parameters():
            tensor.mul_(0.3 if "mix" in name or "down" in name else 1)
    data = [torch.randn(8, 3, 5) for _ in range(8)]
    example = data[0]
    options = {"by": by, "greedy": greedy, "repair": "least_squares"}
    result = sc.drop_blocks(net, 2, example, data=data, **options)
    plain = sc.drop_blocks(net, 2, example, data=data, by=by, greedy=greedy)
    assert result.plan == plain.plan
    assert result.repair is not None
    assert result.repair.after.error < result.repair.before.error
    held = data[3::4]
    assert result.repair.before.error == pytest.approx(
        distance(net, plain.model, held).error, rel=1e-3
    )
    assert result.repair.after.error == pytest.approx(
        distance(net, result.model, held).error, rel=1e-3
    )
