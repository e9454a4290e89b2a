"""Depth: residual blocks are found, dropped, compared with masked ones, saved and loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.errors import FileError, PlanError, ShrinkError, UnknownNameError
from secateur.replacements.passing import PassThrough
from secateur.shrinking.cut import Surgery
from tests import zoo
from tests.faults import replaced

SEED = torch.Generator().manual_seed(0)


class Block(nn.Module):
    """Two residual branches after norms, with a place in the list and a form of output."""

    def __init__(self, place: int, form: str = "tensor"):
        super().__init__()
        self.place, self.form = place, form
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.mix = nn.Linear(8, 8, bias=False)

    def forward(self, scale: float, x: Tensor, cache: list[Tensor] | None = None) -> Any:
        x = x + scale * self.mix(F.silu(x))
        y = self.down(torch.relu(self.up(self.norm(x))))
        if cache is not None:
            cache.append(y)
        out = F.dropout(y, 0.1, self.training) + x
        if self.form == "tensor":
            return out
        return (out, None) if self.form == "tuple" else (out, y)


class Stack(nn.Module):
    def __init__(self, form: str = "tensor", depth: int = 3):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(Block(i, form) for i in range(depth))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            out = block(0.5, x=x)
            x = out if isinstance(out, Tensor) else out[0]
        return self.out(x)


class Fixed(Stack):
    """Code that calls each block by its place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.out(self.blocks[2](0.5, self.blocks[1](0.5, self.blocks[0](0.5, x))))


def example() -> Tensor:
    return torch.randn(4, 6, generator=SEED)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Stack().eval()


def test_blocks_when_modules_add_to_their_input_then_they_are_found_with_their_cost(model):
    blocks = sc.analyze(model, example()).blocks
    assert [b.name for b in blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    inside = sum(p.numel() for p in model.blocks[0].parameters())
    assert [b.params for b in blocks] == [inside] * 3
    assert [b.macs for b in blocks] == [4 * (8 * 8 + 2 * 8 * 16)] * 3
    assert all(b.exact for b in blocks)
    told = str(sc.analyze(model, example())).splitlines()
    assert any(line.startswith("can be dropped whole: blocks.* ×3 (360 params)") for line in told)
    assert blocks[1].masks == {"blocks.1.mix.weight", "blocks.1.down.weight", "blocks.1.down.bias"}


@pytest.mark.parametrize("form", ["tensor", "tuple"])
@pytest.mark.parametrize("names", [["blocks.1"], ["blocks.0"], ["blocks.2", "blocks.0"]])
def test_drop_when_masked_or_left_out_then_outputs_are_equal(form, names, tmp_path):
    torch.manual_seed(0)
    model, x = Stack(form).eval(), example()
    result = sc.drop_blocks(model, names, x)
    assert result.verification.passed
    assert result.verification.exact
    assert result.verification.difference < 1e-6

    class Less(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for i, block in enumerate(self.blocks):
                if f"blocks.{i}" not in names:
                    out = block(0.5, x)
                    x = out if isinstance(out, Tensor) else out[0]
            return self.out(x)

    less = Less(form).eval()
    less.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), less(x))
    left = sum(p.numel() for p in result.model.parameters())
    assert left == result.after.params == result.before.params - len(names) * 360
    assert [type(block) for block in result.model.blocks] == [Block] * (3 - len(names))
    assert not any("returns what it is given" in note for note in result.notes)


def test_drop_when_the_first_goes_then_places_are_counted_anew(model):
    first = sc.drop_blocks(model, ["blocks.0"], example())
    assert [block.place for block in first.model.blocks] == [0, 1]
    second = sc.drop_blocks(first.model, ["blocks.1"], example())
    assert [block.place for block in second.model.blocks] == [0]


def test_drop_when_a_block_cannot_be_taken_out_then_its_number_is_handed_on():
    torch.manual_seed(0)
    result = sc.drop_blocks(Fixed().eval(), ["blocks.0"], x := example())
    assert [type(block).__name__ for block in result.model.blocks] == ["Block"] * 3
    assert isinstance(result.model.blocks[0], PassThrough)
    assert [block.place for block in result.model.blocks] == [0, 0, 2]
    assert any(note.startswith("blocks.0: still called") for note in result.notes)
    again = sc.drop_blocks(result.model, ["blocks.2"], x)
    assert [isinstance(block, PassThrough) for block in again.model.blocks] == [True, False, True]


def test_drop_when_saved_then_a_fresh_model_loads_it_with_other_steps(model, tmp_path):
    x = example()
    once = sc.drop_blocks(model, ["blocks.0"], x)
    twice = sc.prune(once.model, x, sparsity=0.5)
    assert twice.plan.keep
    thrice = sc.drop_blocks(twice.model, ["blocks.1"], x)
    thrice.save(tmp_path)
    for device in ("cpu", "meta"):
        with torch.device(device):
            fresh = Stack()
        loaded = sc.load_pruned(tmp_path, fresh).eval()
        with torch.no_grad():
            assert torch.equal(loaded(x), thrice.model.eval()(x))
        assert [block.place for block in loaded.blocks] == [0]
    again = sc.apply_plan(Stack(), tmp_path, x)
    assert again.after.params == thrice.after.params
    thrice.model.train()(x).sum().backward()


def test_drop_and_cut_in_one_plan_when_applied_then_both_are_done(model):
    x = example()
    plan = sc.Plan({"blocks.1.up": (0, 3, 4), "blocks.0.up": (1, 2)}, ("blocks.0",))
    assert sc.Plan.from_json(plan.to_json()) == plan
    result = sc.apply_plan(model, plan, x)
    assert result.verification.passed
    assert result.model.blocks[0].up.out_features == 3
    assert result.after.params == sum(p.numel() for p in result.model.parameters())
    assert "blocks dropped: blocks.0" in str(result)


def test_drop_when_it_fails_then_the_model_is_as_before(model):
    structure = sc.analyze(model, example())
    before = {**vars(model.blocks[0].mix)}, type(model.blocks[0]), model.state_dict()
    surgery = Surgery(model)
    surgery.cut(structure, sc.Plan({}, ("blocks.0",)))
    assert isinstance(model.blocks[0], PassThrough)
    surgery.undo()
    assert type(model.blocks[0]) is before[1]
    assert vars(model.blocks[0].mix) == before[0]
    assert "passes" not in vars(model.blocks[0])
    assert model.state_dict().keys() == before[2].keys()


def test_blocks_when_nothing_reads_what_else_they_return_then_they_go_without_it(tmp_path):
    """As attention does that returns what it weighed with, which the model leaves alone."""
    torch.manual_seed(0)
    model, x = Stack("both").eval(), example()
    assert [block.name for block in sc.analyze(model, x).blocks] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]
    result = sc.drop_blocks(model, ["blocks.1"], x)
    assert result.verification.exact
    assert result.verification.passed
    assert len(result.model.blocks) == 2
    result.save(tmp_path)
    assert torch.equal(sc.load_pruned(tmp_path, Stack("both")).eval()(x), result.model(x))


def test_drop_when_the_model_then_returns_fewer_tensors_then_the_error_says_so():
    class Remembering(Stack):
        def forward(self, x: Tensor) -> Any:
            x, seen = self.embed(x), []
            for block in self.blocks:
                x, y = block(0.5, x=x)
                seen += [x] if y is None else [x, torch.ones(1)]
            return self.out(x), *seen

    torch.manual_seed(0)
    model, x = Remembering("both").eval(), example()
    with pytest.raises(ShrinkError, match="returns 6 tensors, and the masked one 7"):
        sc.drop_blocks(model, ["blocks.0"], x)


def test_blocks_when_something_else_leaves_them_then_they_are_none():
    class Reading(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x, seen = self.embed(x), []
            for block in self.blocks:
                x, y = block(0.5, x=x)
                seen.append(y.mean(-1, keepdim=True))
            return self.out(x) + sum(seen)

    assert sc.analyze(Reading("both"), example()).blocks == ()

    class Returning(Stack):
        def forward(self, x: Tensor) -> Any:
            x, y = self.blocks[0](0.5, x=self.embed(x))
            return self.out(x), y

    assert sc.analyze(Returning("both", depth=1), example()).blocks == ()

    class Caching(Stack):
        def forward(self, x: Tensor) -> Any:
            cache: list[Tensor] = []
            x = self.embed(x)
            for block in self.blocks:
                x = block(0.5, x, cache)
            return self.out(x), cache

    assert sc.analyze(Caching(), example()).blocks == ()
    with pytest.raises(PlanError, match="no block of Caching.*leave a cache out"):
        sc.drop_blocks(Caching(), ["blocks.0"], example())


class Scaled(nn.Module):
    """Not its input plus something, though it looks like it."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "alpha":
            return torch.add(self.inner(x), x, alpha=2)
        if self.kind == "norm after":
            return F.layer_norm(x + self.inner(x), (8,))
        if self.kind == "relu of any":
            return torch.relu(x + self.inner(x))
        if self.kind == "broadcast":
            return x + self.inner(x).mean(0, keepdim=True)
        return x - self.inner(x)


@pytest.mark.parametrize("kind", ["alpha", "norm after", "relu of any", "broadcast", "difference"])
def test_blocks_when_the_sum_is_another_then_they_are_none(kind):
    model = nn.Sequential(nn.Linear(6, 8), Scaled(kind), nn.Linear(8, 2))
    assert [b.name for b in sc.analyze(model, example()).blocks] == []


def test_blocks_when_a_module_runs_twice_then_it_is_none():
    block = Block(0)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            return self.block(1.0, self.block(1.0, x))

    assert sc.analyze(Twice(), torch.randn(2, 8)).blocks == ()


def test_blocks_when_nothing_masks_a_branch_then_the_model_that_skips_it_is_compared():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sigmoid(self.inner(x))

    model = nn.Sequential(nn.Linear(6, 8), Shifted(), nn.Linear(8, 2))
    result = sc.drop_blocks(model, ["1"], example())
    assert result.verification.exact
    assert result.verification.passed
    assert result.notes == ["1: compared with the model that skips it, as no mask does"]


def test_drop_when_names_are_wrong_then_plan_error(model):
    with pytest.raises(PlanError, match="'block.1' is no block.*Did you mean 'blocks.1'"):
        sc.drop_blocks(model, ["block.1"], example())
    with pytest.raises(PlanError, match="named twice"):
        sc.drop_blocks(model, ["blocks.1", "blocks.1"], example())
    with pytest.raises(UnknownNameError, match="is no block of"):
        sc.analyze(model, example()).block("out")
    with pytest.raises(PlanError, match="drop must be a list"):
        sc.Plan.from_json({"schema": 1, "keep": {}, "drop": "blocks.1"})


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('{"blocks.0": {', '{"blocks.9": {', "'blocks.9' cannot be dropped"),
        ('"input": 1', '"input": -3', "no position"),
        ('{"blocks.0": {', '{"": {', "'' cannot be dropped"),
        ('"taken": {"blocks"', '"taken": {"out"', "no list of modules 'out'"),
        ('"size": 3', '"size": 4', "has 3 modules in this model, and had 4"),
        ('"kept": [1, 2]', '"kept": [2, 1]', "each at most once and in their order"),
        ('"kept": [1, 2]', '"kept": [0, 3]', "each at most once and in their order"),
        ('"kept": [1, 2]', '"kept": [-1]', "each at most once and in their order"),
        ('"kept": [1, 2]', '"kept": [0]', "has no tensor 'blocks.1"),
    ],
)
def test_load_when_the_file_drops_nonsense_then_nothing_changes(tmp_path, old, new, match):
    kind = Fixed if "drop" in match or match == "no position" else Stack
    folder = sc.drop_blocks(kind().eval(), ["blocks.0"], example()).save(tmp_path)
    replaced(folder, old, new)
    fresh = kind()
    with pytest.raises(FileError, match=match):
        sc.load_pruned(folder, fresh)
    assert type(fresh.blocks[0]) is Block
    assert fresh.blocks[0].up.weight is not None


def test_drop_when_it_is_a_resnet_then_identity_blocks_go_exactly():
    model, x = zoo.build("resnet18")
    blocks = sc.analyze(model, x).blocks
    names = [b.name for b in blocks]
    assert names == ["layer1.0", "layer1.1", "layer1", "layer2.1", "layer3.1", "layer4.1"]
    result = sc.drop_blocks(model, [names[0], names[-1]], x)
    assert result.verification.passed
    assert result.verification.exact
    assert result.after.params == sum(p.numel() for p in result.model.parameters())


def test_drop_when_it_is_a_language_model_then_it_generates_with_its_cache():
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(1, 64, (2, 7), generator=SEED)
    inputs = {"input_ids": tokens}
    result = sc.drop_blocks(model, ["model.layers.0"], inputs)
    assert result.verification.passed
    options = {"max_new_tokens": 6, "do_sample": False}
    cached = result.model.generate(tokens, use_cache=True, **options)
    assert torch.equal(cached, result.model.generate(tokens, use_cache=False, **options))
