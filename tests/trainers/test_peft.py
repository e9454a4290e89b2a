"""Adapters on masked and pruned models: what was zero is zero after them, and nothing is lost."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ConfigError, MaskError, MissingExtraError, ModelError
from secateur.masks import masking
from secateur.trainers import merging
from tests.process.process import changed, state_of
from tests.zoo import torchvision_models

torchvision_models()  # which PEFT imports by way of transformers
peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install secateur[peft]")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, about its own options


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(12, 16, padding_idx=0)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16, bias=False)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        return self.head(h + self.down(self.up(h).relu()))


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 8, 3, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.norm(self.stem(x)).relu()).mean((2, 3)))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=12, use_cache=False)
    )


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    example: Any
    targets: list[str]

    def model(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().eval()

    def output(self, model: nn.Module) -> Tensor:
        x = self.example
        made = model(**x) if isinstance(x, dict) else model(x)
        return made if isinstance(made, Tensor) else made.logits


TOKENS = torch.arange(10).reshape(2, 5) + 1
CASES = {
    "linear": Case(Words, TOKENS, ["up", "down"]),
    "embedding": Case(Words, TOKENS, ["words", "head"]),
    "convolution": Case(Image, torch.linspace(-1, 1, 512).reshape(2, 4, 8, 8), ["stem", "down"]),
    "llama": Case(llama, {"input_ids": TOKENS}, ["q_proj", "v_proj", "down_proj", "up_proj"]),
    "conv1d": Case(gpt2, {"input_ids": TOKENS}, ["c_attn", "c_fc"]),
}

SLOW = {name: pytest.mark.slow for name in ("conv1d", "llama")}  # models that take seconds


def adapted(case: Case, model: nn.Module, **options: Any) -> nn.Module:
    """Return a PeftModel whose adapters do something."""
    options = {"r": 4, "target_modules": case.targets, "init_lora_weights": False, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return peft.get_peft_model(model, peft.LoraConfig(**options))


def train(case: Case, model: nn.Module) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        case.output(model).square().mean().backward()
        optimizer.step()


def pruner(case: Case, model: nn.Module, granularity: str = "2:4", **where: Any) -> sc.Pruner:
    names = where.pop("names", [f"*{name}" for name in case.targets])
    share = {} if granularity == "2:4" else {"sparsity": 0.6}
    config = sc.Config(granularity=granularity, criterion="l1", names=names, **share)
    made = sc.Pruner(model, config, case.example)
    made.step()
    return made


def zeros(model: nn.Module) -> dict[str, Tensor]:
    return {name: value == 0 for name, value in model.state_dict().items() if value.ndim > 1}


def merged_by_hand(case: Case, model: nn.Module) -> nn.Module:
    """Return what PEFT makes of a model without masks, times the zeros that it had."""
    plain = copy.deepcopy(model)
    masking.take_off(plain)
    base = copy.deepcopy(plain).unload()
    made = plain.merge_and_unload()
    before = dict(base.named_parameters())
    with torch.no_grad():
        for name, value in made.named_parameters():
            if bool((before[name] != 0).any()):
                value.mul_(before[name] != 0)
    return made


@pytest.mark.parametrize(("granularity", "keep"), [("2:4", True), ("element", False)])
@pytest.mark.parametrize("baked", [False, True], ids=["masked", "baked"])
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=n, marks=SLOW.get(n, ())) for n, case in CASES.items()]
)
def test_merge_then_zeros_stay_and_what_stays_is_what_was_learned(case, baked, granularity, keep):
    model = case.model()
    run = pruner(case, model, granularity)
    masks = masking.masks_on(model)
    below = {n: p.detach().clone() for n, p in model.named_parameters()}
    if baked:
        model = run.finish().model
    before = zeros(model)
    wrapped = adapted(case, model, lora_dropout=0.1 if "linear" in case.targets else 0.0)
    if keep:
        sc.keep_zeros(wrapped)
    train(case, wrapped)
    learned, expected = case.output(wrapped.eval()), merged_by_hand(case, wrapped)
    merged = sc.merge(wrapped)
    assert merged.model is model
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    after = zeros(model)
    assert all(torch.equal(after[name], before[name]) for name in before if name in masks)
    torch.testing.assert_close(case.output(model), case.output(expected))
    assert merged.left_out.keys() == masks.keys() == merged.zeros.keys() & masks.keys()
    if keep:
        torch.testing.assert_close(case.output(model), learned)
        assert max(merged.left_out.values()) == 0
    else:
        assert all(0.2 < share < 0.9 for share in merged.left_out.values()), str(merged)
    if not baked:  # the pruner goes on where it was
        assert masking.masks_on(model).keys() == masks.keys()
        for name, parameter in model.named_parameters():
            gone = ~masks[name] if name in masks else torch.zeros_like(parameter, dtype=bool)
            assert torch.equal(parameter[gone], below[name][gone])
        run.step()
        result = run.finish()
        assert all(torch.equal(zeros(result.model)[name], before[name]) for name in masks)


@pytest.mark.parametrize("name", ["linear", "convolution", "llama"])
def test_merge_when_the_model_was_cut_then_it_is_saved_and_loaded_as_it_is(name, tmp_path):
    case = CASES[name]
    result = sc.prune(case.model(), case.example, sparsity=0.5, verify=False)
    wrapped = adapted(case, result.model)
    train(case, wrapped)
    learned = case.output(wrapped.eval())
    merged = sc.merge(wrapped)
    assert merged.model is result.model
    torch.testing.assert_close(case.output(result.model), learned)
    result.save(tmp_path)
    again = sc.load_pruned(tmp_path, case.model()).eval()
    assert torch.equal(case.output(again), case.output(result.model))


def test_merge_when_masks_were_put_on_after_the_adapter_then_they_are_kept():
    case = CASES["linear"]
    wrapped = adapted(case, case.model())
    run = pruner(case, wrapped, names=["*up.base_layer", "*down.base_layer"])
    train(case, wrapped)
    with pytest.raises(MaskError, match="secateur.merge"):
        copy.deepcopy(wrapped).merge_and_unload()
    expected, masks = merged_by_hand(case, wrapped), masking.masks_on(wrapped)
    model = sc.merge(wrapped).model
    assert list(masking.masks_on(model)) == ["up.weight", "down.weight"]
    for name, mask in masking.masks_on(model).items():
        where = f"base_model.model.{name.replace('.weight', '.base_layer.weight')}"
        assert torch.equal(mask, masks[where])
        assert bool(mask.reshape(-1, 4).sum(1).eq(2).all())
    assert torch.equal(case.output(model), case.output(expected))
    with pytest.raises(ConfigError, match=r"no parameter .*up.base_layer.weight"):
        run.finish()


@pytest.mark.parametrize("call", ["decide", "finish"])
def test_pruner_when_adapters_are_on_its_model_then_it_says_so_and_goes_on_after_a_merge(call):
    case = CASES["linear"]
    model = case.model()
    run = pruner(case, model)
    wrapped = adapted(case, model)
    with pytest.raises(ConfigError, match=r"no parameter 'up.weight' any more.*secateur.merge"):
        getattr(run, call)()
    assert masking.is_masked(model)
    sc.merge(wrapped)
    getattr(run, call)()


KINDS = {
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "rslora": {"use_rslora": True},
    "whole head": {"modules_to_save": ["head"]},
    "biases too": {"bias": "all"},
    "half": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("baked", [False, True], ids=["masked", "baked"])
def test_merge_when_adapters_are_of_other_kinds_then_zeros_stay(kind, baked):
    case = Case(Words, TOKENS, ["up"])
    model = case.model().to(torch.bfloat16 if kind == "half" else torch.float32)
    run = pruner(case, model, names=["up", "head"])
    masks = masking.masks_on(model)
    if baked:
        model = run.finish().model
    wrapped = adapted(case, model, **KINDS[kind])
    train(case, wrapped)
    head = wrapped.base_model.model.head
    merged = sc.merge(wrapped).model
    for name in ("up.weight", "head.weight"):
        assert torch.equal(merged.state_dict()[name] == 0, ~masks[name]), name
    if kind == "whole head":
        trained = head.modules_to_save["default"]
        assert torch.equal(
            merged.head.weight[masks["head.weight"]], trained.weight[masks["head.weight"]]
        )
        assert torch.equal(merged.head.bias, trained.bias)


@pytest.mark.parametrize("config", [peft.LoHaConfig, peft.LoKrConfig, peft.IA3Config])
def test_merge_when_the_tuner_is_another_then_zeros_stay(config):
    case = CASES["linear"]
    model = pruner(case, case.model()).finish().model
    before = zeros(model)
    options = {"feedforward_modules": []} if config is peft.IA3Config else {}
    wrapped = peft.get_peft_model(model, config(target_modules=case.targets, **options))
    train(case, wrapped)
    merged = sc.merge(wrapped).model
    assert all(torch.equal(zeros(merged)[name], before[name]) for name in before)


def test_merge_when_an_adapter_is_not_active_then_it_is_said_and_two_active_ones_are_merged():
    case = CASES["linear"]
    model = pruner(case, case.model()).finish().model
    wrapped = adapted(case, model)
    for name in ("second", "idle"):
        config = peft.LoraConfig(r=2, target_modules=["up"], init_lora_weights=False)
        wrapped.add_adapter(name, config)
    wrapped.base_model.set_adapter(["default", "second"])
    sc.keep_zeros(wrapped)
    expected = case.output(wrapped)
    merged = sc.merge(wrapped)
    torch.testing.assert_close(case.output(merged.model), expected)
    assert merged.notes == ["adapter 'idle' was not active, and is gone"]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.experts = nn.Parameter(torch.randn(3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.attention(x, x, x, need_weights=False)[0]
        return (h.unsqueeze(1) @ self.experts).sum(1)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["attention"]},
        {"target_modules": [], "target_parameters": ["experts"]},
    ],
    ids=["fused attention", "stacked experts"],
)
def test_merge_when_whole_parameters_are_adapted_then_zeros_stay(options):
    case = Case(Attention, torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 16), [])
    holder = nn.Sequential(case.model())  # PEFT replaces what is in a module, never a model
    with torch.no_grad():
        for parameter in holder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand(parameter.shape) > 0.5)
    before = zeros(holder)
    wrapped = adapted(case, holder, **options)
    train(case, wrapped)
    merged = sc.merge(wrapped)
    assert max(merged.left_out.values()) > 0
    assert all(torch.equal(zeros(merged.model)[name], zero) for name, zero in before.items())


def test_merge_when_a_tensor_was_zero_throughout_then_it_is_learned_and_said():
    case = Case(Words, TOKENS, ["up"])
    model = case.model()
    nn.init.zeros_(model.up.weight)
    wrapped = adapted(case, model)
    with pytest.raises(ModelError, match="'up' has no weight that is not zero"):
        sc.keep_zeros(wrapped)
    expected = case.output(wrapped)
    merged = sc.merge(wrapped)
    torch.testing.assert_close(case.output(merged.model), expected)
    assert "up.weight was zero throughout" in str(merged)


def _tied(case: Case) -> nn.Module:
    model = case.model()
    model.head = nn.Linear(16, 12, bias=False)
    model.head.weight = model.words.weight
    return adapted(case, model, target_modules=["words"])


def _shared(case: Case) -> nn.Module:
    """The layer is in two places, of which PEFT finds one."""
    model = case.model()
    model.again = model.up
    return adapted(case, model)


def _begun(case: Case) -> nn.Module:
    return adapted(case, case.model(), init_lora_weights="olora")


def _quantised(case: Case) -> nn.Module:
    wrapped = adapted(case, case.model())
    base = wrapped.base_model.model.up.base_layer
    base.weight = nn.Parameter(torch.zeros(32, 16, dtype=torch.uint8), requires_grad=False)
    return wrapped


def _merged(case: Case) -> nn.Module:
    wrapped = adapted(case, case.model())
    wrapped.merge_adapter()
    return wrapped


def _disabled(case: Case) -> nn.Module:
    wrapped = adapted(case, case.model())
    wrapped.base_model.disable_adapter_layers()
    return wrapped


def _broken(case: Case) -> nn.Module:
    wrapped = adapted(case, pruner(case, case.model()).model)
    wrapped.base_model.model.down.lora_A["default"].weight.data.fill_(torch.nan)
    return wrapped


def _without_bias(case: Case) -> nn.Module:
    return adapted(case, case.model(), lora_bias=True)


def _injected(case: Case) -> nn.Module:
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["up"]), case.model())


def _prompts(case: Case) -> nn.Module:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    return peft.get_peft_model(llama(), config)


REFUSED: dict[Callable[[Case], nn.Module], str] = {
    _tied: r"'weight' of 'words' is shared with another layer.*untie",
    _shared: r"of 'up' is shared with another layer",
    _begun: r"init_lora_weights='olora', which has changed the base weights, zeros too",
    _quantised: r"'weight' of 'up' is quantised.*floating point",
    _merged: r"merged at 'up': unmerge_adapter\(\) first",
    _disabled: r"disabled at 'up': enable_adapter_layers\(\) first",
    _broken: r"cannot merge 'down': NaN",
    _without_bias: r"cannot merge 'down': .*no bias",
    _injected: r"this Words is none around its adapters: build it with get_peft_model",
    _prompts: r"add to its inputs",
    Case.model: r"a PeftModel is needed, and this Words is none$",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_merge_when_it_cannot_be_done_then_it_says_why_and_changes_nothing(build):
    model = build(CASES["linear"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    masks, kinds = masking.masks_on(model), [type(m) for m in model.modules()]
    with pytest.raises(ModelError, match=REFUSED[build]):
        sc.merge(model)
    assert [type(m) for m in model.modules()] == kinds
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    after = masking.masks_on(model)
    assert all(torch.equal(after[name], mask) for name, mask in masks.items())


def test_keep_zeros_when_a_layer_has_no_plain_lora_then_it_is_refused_and_none_is_changed():
    case = CASES["linear"]
    model = adapted(case, case.model(), use_dora=True)
    with pytest.raises(ModelError, match=r"'up' has no plain LoRA but a DoraLinearVariant"):
        sc.keep_zeros(model)
    with pytest.raises(ModelError, match="Words is none"):
        sc.keep_zeros(case.model())
    with pytest.raises(ModelError, match="'up' is quantised"):
        sc.keep_zeros(_quantised(case))
    whole = {"target_modules": [], "target_parameters": ["up.weight"]}
    with pytest.raises(ModelError, match="'up' is adapted by PEFT's ParamWrapper"):
        sc.keep_zeros(adapted(case, case.model(), **whole))
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=20, target_modules=["up"])
    with pytest.raises(ModelError, match="'up' is adapted by PEFT's SVDLinear"):
        sc.keep_zeros(peft.get_peft_model(case.model(), config))


def test_prune_when_adapters_lose_ranks_then_a_warning_says_so():
    case = CASES["linear"]
    wrapped = adapted(case, case.model(), r=4).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    result = sc.prune(wrapped, TOKENS, 0.5, "l2")
    assert any("adapters lost ranks" in warning for warning in result.warnings)
    result = sc.prune(wrapped, TOKENS, 0.5, "l2", allocation={"*.lora_A.*": 0})
    assert not result.warnings
    assert result.model.base_model.model.up.lora_A["default"].out_features == 4


def test_keep_zeros_then_pefts_own_merge_keeps_them_and_can_be_undone():
    case = CASES["linear"]
    model = pruner(case, case.model()).finish().model
    before, values = zeros(model), {n: v.clone() for n, v in model.state_dict().items()}
    wrapped = adapted(case, model)
    sc.keep_zeros(wrapped)
    expected = case.output(copy.deepcopy(wrapped))
    wrapped.merge_adapter()
    torch.testing.assert_close(case.output(wrapped), expected)
    wrapped.unmerge_adapter()
    torch.testing.assert_close(wrapped.base_model.model.up.base_layer.weight, values["up.weight"])
    merged = wrapped.merge_and_unload()
    assert all(torch.equal(zeros(merged)[name], before[name]) for name in before)


@pytest.mark.parametrize("baked", [False, True], ids=["masked", "baked"])
def test_copies_and_averages_and_saved_adapters_when_zeros_are_kept_then_they_compute_the_same(
    baked, tmp_path
):
    case = CASES["llama"]
    model = case.model()
    run = pruner(case, model)
    masks = masking.masks_on(model)
    if baked:
        model = run.finish().model
    wrapped = adapted(case, model)
    sc.keep_zeros(wrapped)
    train(case, wrapped)
    expected = case.output(wrapped.eval())
    average = torch.optim.swa_utils.AveragedModel(wrapped)
    average.update_parameters(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    twin = copy.deepcopy(wrapped)
    assert torch.equal(case.output(twin), expected)
    assert torch.equal(case.output(average.module.eval()), expected)
    merged = sc.merge(average.module).model
    torch.testing.assert_close(case.output(merged), expected)
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(case.output(again), expected)
    assert all(torch.equal(zeros(again)[name], ~mask) for name, mask in masks.items())
    base = case.model()
    base.load_state_dict(twin.unload().state_dict())
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(case.output(sc.merge(loaded).model), expected)


@pytest.mark.parametrize("call", [sc.merge, sc.keep_zeros])
def test_merge_when_peft_is_not_installed_then_the_error_names_the_extra(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"secateur\[peft\]"):
        call(nn.Linear(2, 2))


@pytest.mark.parametrize("case", [pytest.param(n, marks=SLOW.get(n, [])) for n in CASES])
@pytest.mark.parametrize("masked", [False, True])
def test_merge_when_it_is_interrupted_after_peft_merged_then_all_is_as_before(
    case: str, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = CASES[case].model()
    if masked:
        pruner(CASES[case], base)
    model = adapted(CASES[case], base, modules_to_save=["norm"] if case == "convolution" else None)
    expected, before = CASES[case].output(model), state_of(model)
    kept = copy.deepcopy(model)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(merging, "_make_zeros", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sc.merge(model)
    assert changed(before, state_of(model)) == []
    assert torch.equal(CASES[case].output(model), expected)
    merged, again = sc.merge(model), sc.merge(kept)
    assert merged.zeros == again.zeros
    assert torch.equal(CASES[case].output(merged.model), CASES[case].output(again.model))
