"""Where a smaller model goes: compiled, exported, to ONNX, copied, trained on, pruned again."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.replacements import name_of
from secateur.types import call_arguments
from tests import zoo

SEED = torch.Generator().manual_seed(0)


def convolutional() -> tuple[nn.Module, Any]:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 12), nn.ReLU(), nn.Linear(12, 4),
    )  # fmt: skip
    return model, torch.randn(2, 3, 8, 8, generator=SEED)


def attentive() -> tuple[nn.Module, Any]:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(encoder, nn.Linear(16, 3)), torch.randn(2, 5, 16, generator=SEED)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(20, 8), nn.GRU(8, 12, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(self.embed(x))[0])


def recurrent() -> tuple[nn.Module, Any]:
    return Reader(), torch.randint(20, (2, 5), generator=SEED)


def decoder() -> tuple[nn.Module, Any]:
    zoo.torchvision_models()  # transformers imports torchvision, which needs help
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, use_cache=False, pad_token_id=0,
    )  # fmt: skip
    tokens = torch.randint(1, 64, (2, 7), generator=SEED)
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens}


def encoder() -> tuple[nn.Module, Any]:
    zoo.torchvision_models()
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=16,
    )  # fmt: skip
    tokens = torch.randint(1, 64, (2, 7), generator=SEED)
    seen = torch.ones(2, 7, dtype=torch.long)
    return transformers.BertModel(config), {"input_ids": tokens, "attention_mask": seen}


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "cnn": convolutional,
    "attention": attentive,
    "gru": recurrent,
    "llama": decoder,
    "bert": encoder,
}


class Small:
    """A model, what is left of it, and its inputs."""

    def __init__(self, name: str):
        torch.manual_seed(0)
        self.dense, self.example = MODELS[name]()
        self.dense.eval()
        self.args, self.kwargs = call_arguments(self.example)
        self.result = sc.prune(self.dense, self.example, sparsity=0.5)
        self.model = self.result.model.eval()

    def run(self, model: Callable[..., Any]) -> Tensor:
        with torch.no_grad():
            return first(model(*self.args, **self.kwargs))


def first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else next(iter(out.values()))


NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "bert" else ()) for name in MODELS]


@pytest.fixture(scope="module", params=NAMES)
def small(request: pytest.FixtureRequest) -> Small:
    return Small(request.param)


def test_prune_when_it_goes_out_then_half_of_it_was_exactly_removed(small):
    assert small.result.verification.passed
    assert small.result.after.params < 0.8 * small.result.before.params


def test_compile_when_the_dense_model_is_one_graph_then_so_is_the_small_one(small):
    if any(isinstance(module, nn.RNNBase) for module in small.dense.modules()):
        pytest.skip("torch compiles no recurrent layer into one graph")
    torch.compiler.reset()
    dense = torch.compile(small.dense, fullgraph=True, backend="eager")
    small.run(dense)
    compiled = torch.compile(small.model, fullgraph=True, backend="eager")
    torch.testing.assert_close(small.run(compiled), small.run(small.model))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.read._flat_weights")
def test_export_when_the_dense_model_exports_then_so_does_the_small_one(small):
    torch.export.export(small.dense, small.args, small.kwargs)
    program = torch.export.export(small.model, small.args, small.kwargs)
    torch.testing.assert_close(small.run(program.module()), small.run(small.model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_when_exported_then_onnxruntime_computes_the_same(small):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            small.model, small.args, kwargs=small.kwargs, dynamo=True, verbose=False
        )
    program.save(file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    given = [*small.args, *small.kwargs.values()]
    feeds = {node.name: x.numpy() for node, x in zip(session.get_inputs(), given, strict=True)}
    found = torch.from_numpy(session.run(None, feeds)[0])
    torch.testing.assert_close(found, small.run(small.model), rtol=1e-3, atol=1e-4)


def test_copy_when_the_copy_is_trained_then_the_original_stays(small):
    before = small.run(small.model)
    twin = copy.deepcopy(small.model).train()
    assert torch.equal(small.run(copy.deepcopy(small.model)), before)
    optimizer = torch.optim.AdamW(twin.parameters(), 0.01)
    first(twin(*small.args, **small.kwargs)).square().mean().backward()
    grown = [n for n, p in twin.named_parameters() if p.grad is not None and p.grad.any()]
    assert grown
    optimizer.step()
    assert not torch.equal(small.run(twin.eval()), before)
    assert torch.equal(small.run(small.model), before)


def test_prune_when_pruned_again_then_it_is_smaller_still_and_loads(small, tmp_path):
    again = sc.prune(small.model, small.example, sparsity=0.5)
    assert again.verification.passed
    assert again.after.params < small.result.after.params
    sc.save_pruned(again, tmp_path)
    loaded = sc.load_pruned(tmp_path, copy.deepcopy(small.dense)).eval()
    torch.testing.assert_close(small.run(loaded), small.run(again.model.eval()))


def test_attention_when_it_goes_out_then_it_is_the_replacement_that_is_tested():
    assert any(map(name_of, Small("attention").model.modules()))
