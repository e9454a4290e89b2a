"""Multi-head attention in plain operations: the same results, any widths, masked equals cut."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.replacements import in_plain_operations, name_of
from secateur.replacements.attention import DecoupledAttention
from secateur.shrinking.cut import Surgery
from secateur.types import call_arguments
from tests.faults import replaced

SEED = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=SEED)


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=SEED)
    return model.eval()


class Mixer(nn.Module):
    """Attention between two projections, so that all four widths are free."""

    def __init__(self, *, cross: bool = False, **settings: Any):
        super().__init__()
        self.settings = {k: settings.pop(k) for k in ("need_weights",) if k in settings}
        self.query = nn.Linear(6, 16)
        self.memory = nn.Linear(5, settings.get("kdim") or 16) if cross else None
        self.values = nn.Linear(5, settings.get("vdim") or 16) if cross else None
        self.attention = nn.MultiheadAttention(16, 4, **settings)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor, memory: Tensor | None = None, **masks: Any) -> Tensor:
        x = self.query(x)
        k = x if self.memory is None else self.memory(memory)
        v = x if self.values is None else self.values(memory)
        return self.out(torch.relu(self.attention(x, k, v, **self.settings, **masks)[0]))


def masks(batch_first: bool) -> Iterator[dict[str, Tensor]]:
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    causal = torch.zeros(4, 5, dtype=torch.bool)
    causal[:, 0] = True
    yield {}
    yield {"key_padding_mask": padding}
    yield {"attn_mask": causal}
    yield {"attn_mask": causal, "key_padding_mask": padding}
    yield {"attn_mask": random(12, 4, 5)}
    yield {"attn_mask": random(4, 5), "key_padding_mask": random(3, 5)}


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 6, "vdim": 5},
        {"kdim": 6, "vdim": 5, "add_bias_kv": True, "add_zero_attn": True},
    ],
    ids=str,
)
def test_plain_when_nothing_is_cut_then_it_computes_what_torch_does(
    settings, batch_first, need_weights
):
    layer = randomised(nn.MultiheadAttention(16, 4, batch_first=batch_first, **settings))
    q, k, v = random(3, 4, 16), random(3, 5, layer.kdim), random(3, 5, layer.vdim)
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    before = {**vars(layer)}
    for mask, average in product(masks(batch_first), [True, False]):
        options = {"need_weights": need_weights, "average_attn_weights": average, **mask}
        with torch.no_grad():
            expected = layer(q, k, v, **options)
            with in_plain_operations(layer):
                assert type(layer) is DecoupledAttention
                found = layer(q, k, v, **options)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert type(layer) is nn.MultiheadAttention
    assert vars(layer).keys() == before.keys()


@pytest.mark.parametrize("need_weights", [True, False])
def test_plain_when_there_is_no_batch_or_a_causal_hint_then_it_computes_what_torch_does(
    need_weights,
):
    layer = randomised(nn.MultiheadAttention(16, 4))
    x, mask = random(5, 16), nn.Transformer.generate_square_subsequent_mask(5)
    for options in ({}, {"attn_mask": mask}, {"attn_mask": mask, "is_causal": True}):
        options["need_weights"] = need_weights
        with torch.no_grad():
            expected = layer(x, x, x, **options)
            with in_plain_operations(layer):
                found = layer(x, x, x, **options)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_plain_when_the_block_fails_then_the_layer_is_itself_again():
    model = nn.Sequential(nn.MultiheadAttention(16, 4))
    before = {**vars(model[0])}
    with pytest.raises(KeyError), in_plain_operations(model):
        raise KeyError
    assert type(model[0]) is nn.MultiheadAttention
    assert vars(model[0]) == before


def masked_copy(model: nn.Module, result: sc.Result) -> nn.Module:
    masked = copy.deepcopy(model)
    Surgery(masked).mask(result.masks)
    return masked


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize(
    ("settings", "memory"),
    [
        ({}, False),
        ({"batch_first": True}, False),
        ({"bias": False}, False),
        ({"add_bias_kv": True, "add_zero_attn": True}, False),
        ({"cross": True}, True),
        ({"cross": True, "kdim": 8, "vdim": 12}, True),
    ],
    ids=str,
)
def test_cut_when_all_widths_lose_another_share_then_masked_equals_cut(
    settings, memory, need_weights
):
    model = randomised(Mixer(need_weights=need_weights, **settings))
    example = (random(3, 4, 6), random(3, 4, 5)) if memory else (random(3, 4, 6),)
    structure = sc.analyze(model, example)
    assert all(group.exact for group in structure.groups)
    inner = [g for g in structure.groups if g.name.startswith("attention")]
    assert sorted(g.size for g in inner)[:3] == [4, 4, 4], "heads, their width, width of values"
    keep = {g.name: tuple(range(0, g.size - 1 - i % 2)) for i, g in enumerate(structure.groups)}
    result = sc.apply_plan(model, sc.Plan(keep), example)
    assert result.verification.passed
    assert result.verification.difference < 1e-5
    layer = result.model.attention
    assert name_of(layer) == "DecoupledAttention"
    assert isinstance(layer, nn.MultiheadAttention)
    assert layer.num_heads < 4
    assert sum(p.numel() for p in result.model.parameters()) == result.after.params
    assert result.model.state_dict().keys() == model.state_dict().keys()


def test_cut_when_the_widths_still_agree_then_the_layer_keeps_its_class():
    model = randomised(Mixer())
    example = random(3, 4, 6)
    structure = sc.analyze(model, example)
    heads = next(g for g in structure.groups if g.name == "attention.in_proj_weight")
    outer = [g for g in structure.groups if g.size == 16]
    keep = {heads.name: (0, 2)} | {g.name: tuple(range(0, 16, 2)) for g in outer}
    result = sc.apply_plan(model, sc.Plan(keep), example)
    layer = result.model.attention
    assert type(layer) is nn.MultiheadAttention
    assert (layer.embed_dim, layer.num_heads, layer.head_dim, layer.kdim) == (8, 2, 4, 8)
    assert "v_head_dim" not in vars(layer)
    assert layer._qkv_same_embed_dim


def encoder(**settings: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, **settings)
    return randomised(nn.TransformerEncoder(layer, 2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_cut_when_torch_would_run_its_fused_encoder_then_masked_equals_cut(norm_first, padding):
    if norm_first:
        with pytest.warns(UserWarning, match="nested"):
            model = encoder(norm_first=True)
    else:
        model = encoder()
    x = random(3, 5, 16)
    ignored = torch.zeros(3, 5, dtype=torch.bool)
    ignored[1, 3:] = True
    example: Any = {"src": x, "src_key_padding_mask": ignored} if padding else x
    result = sc.prune(model, example, sparsity=0.5)
    assert len(result.plan.keep) >= 4
    assert any(map(name_of, result.model.modules()))
    masked = masked_copy(model, result)
    _, arguments = call_arguments(example)
    arguments = arguments or {"src": x}
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        expected, found = masked(**arguments), result.model(**arguments)
    keep = ~ignored if padding else slice(None)
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)


def test_cut_when_only_the_feed_forward_shrinks_then_torch_may_run_its_fused_encoder():
    model = encoder()
    result = sc.prune(model, random(2, 5, 16), sparsity=0.5, names=["*linear1*"])
    assert not any(map(name_of, result.model.modules()))
    assert result.model.use_nested_tensor
    x = random(2, 5, 16)
    with torch.inference_mode():
        torch.testing.assert_close(
            result.model(x), masked_copy(model, result)(x), rtol=1e-4, atol=1e-5
        )


def test_cut_when_it_is_a_whole_transformer_then_masked_equals_cut():
    model = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)
    example = (random(2, 5, 16), random(2, 4, 16))
    result = sc.prune(randomised(model), example, sparsity=0.5)
    assert result.verification.passed
    assert sum(bool(name_of(m)) for m in result.model.modules()) == 3
    result.model.train()(*example).sum().backward()


THREE_HEADS = sc.Plan({"attention.in_proj_weight": (0, 1, 3)})


def test_saved_when_a_layer_stays_replaced_then_it_loads_and_prunes_again(tmp_path):
    model, example = randomised(Mixer(batch_first=True)), random(2, 4, 6)
    once = sc.apply_plan(model, THREE_HEADS, example)
    once.save(tmp_path / "once")
    loaded = sc.load_pruned(tmp_path / "once", Mixer(batch_first=True))
    assert name_of(loaded.attention) == "DecoupledAttention"
    assert loaded.attention.scale == 0.5
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(example), once.model(example), rtol=0, atol=0)
    twice = sc.prune(loaded, example, sparsity=0.5)
    assert twice.after.params < once.after.params
    twice.save(tmp_path / "twice")
    with torch.device("meta"):
        fresh = Mixer(batch_first=True)
    fresh = sc.load_pruned(tmp_path / "twice", fresh)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(example), twice.model(example), rtol=0, atol=0)


def test_saved_when_the_file_replaces_what_has_no_replacement_then_file_error(tmp_path):
    folder = sc.apply_plan(randomised(Mixer()), THREE_HEADS, random(3, 4, 6)).save(tmp_path)
    text = (folder / "plan.json").read_text()
    for path, name, match in (
        ("out", "DecoupledAttention", "'out' cannot be replaced"),
        ("attention", "PlainLSTM", "is replaced by DecoupledAttention, and not by 'PlainLSTM'"),
        ("nowhere", "DecoupledAttention", "'nowhere' cannot be replaced"),
    ):
        (folder / "plan.json").write_text(text)
        replaced(folder, '"attention": "DecoupledAttention"', f'"{path}": "{name}"')
        fresh = Mixer()
        with pytest.raises(sc.errors.FileError, match=match):
            sc.load_pruned(folder, fresh)
        assert type(fresh.attention) is nn.MultiheadAttention
        assert "scale" not in vars(fresh.attention)


def test_cut_when_it_fails_then_the_layer_is_as_before(monkeypatch):
    model, example = randomised(Mixer()), random(3, 4, 6)
    before = {**vars(model.attention)}
    structure = sc.analyze(model, example)
    surgery = Surgery(model)
    surgery.cut(structure, sc.Plan({"attention.in_proj_weight": (0, 1)}))
    assert type(model.attention) is DecoupledAttention
    surgery.undo()
    assert type(model.attention) is nn.MultiheadAttention
    assert vars(model.attention) == before


def test_script_when_the_dense_layer_is_scriptable_then_so_is_the_cut_one():
    model, example = randomised(nn.MultiheadAttention(16, 4)), random(3, 4, 16)
    example = (example, example, example)
    structure = sc.analyze(model, example)
    heads = next(g.name for g in structure.groups if g.name == "in_proj_weight")
    small = sc.apply_plan(model, sc.Plan({heads: (0, 1, 3)}), example).model
    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(small)
    with torch.no_grad():
        torch.testing.assert_close(scripted(*example), small(*example))


class Halved(nn.MultiheadAttention):
    """A subclass with more in its forward."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        out, weights = super().forward(query / 2, key, value, **options)
        return out, weights


def test_cut_when_a_subclass_has_more_in_its_forward_then_masked_equals_cut(tmp_path):
    def build() -> nn.Module:
        model = Mixer()
        model.attention = Halved(16, 4)
        return model

    model, example = randomised(build()), random(3, 4, 6)
    result = sc.apply_plan(model, THREE_HEADS, example)
    assert result.verification.passed
    assert isinstance(result.model.attention, Halved)
    assert result.model.attention.num_heads == 3
    loaded = sc.load_pruned(result.save(tmp_path), build()).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(example), result.model(example))
