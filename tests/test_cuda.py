"""On a GPU everything is as on the CPU; skipped where there is none."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur
from secateur import Config, Pruner, analyze, load_pruned, save_pruned
from secateur.masks import masking
from secateur.nni.pruning import FPGMPruner, LevelPruner
from secateur.nni.speedup import ModelSpeedup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TRAINED: dict[str, dict[str, Any]] = {
    "level": {"criterion": "magnitude", "granularity": "element"},
    "level, global": {"criterion": "magnitude", "granularity": "element", "scope": "global"},
    "l1": {"criterion": "l1"},
    "fpgm": {"criterion": "fpgm"},
    "random": {"criterion": "random"},
    "taylor": {"criterion": "taylor", "scope": "global"},
    "slim": {"method": "slim", "exclude": ("head.*",)},
    "group lasso": {"method": "group_lasso"},
    "growing": {"method": "growing"},
    "movement": {"method": "movement", "granularity": "element"},
    "movement of groups": {"method": "movement"},
}


class Net(nn.Module):
    """Convolutions with norms around a residual connection, and a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(24)
        self.outer = nn.Conv2d(24, 16, 3, padding=1)
        self.outer_norm = nn.BatchNorm2d(16)
        self.head = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = self.outer_norm(self.outer(F.relu(self.inner_norm(self.inner(x)))))
        return self.head(F.relu(x + y).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().cuda().eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).cuda()


def all_on_the_gpu(model: nn.Module) -> bool:
    return all(t.is_cuda for t in (*model.parameters(), *model.buffers()))


def train(model: nn.Module, pruner: Pruner, x: Tensor, steps: int = 4) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        labels = torch.arange(len(x), device=x.device) % 5
        F.cross_entropy(model(x + step), labels).backward()
        optimizer.step()
        pruner.step()
    model.eval()


def test_the_structure_is_that_of_the_cpu(net: nn.Module, x: Tensor) -> None:
    there = analyze(net, x)
    here = analyze(copy.deepcopy(net).cpu(), x.cpu())
    assert [(g.name, g.size, g.exact) for g in there.groups] == [
        (g.name, g.size, g.exact) for g in here.groups
    ]
    assert there.cost() == here.cost()


@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm", "random", "taylor"])
def test_one_call_prunes_and_verifies(net: nn.Module, x: Tensor, criterion: str) -> None:
    labels = torch.zeros(len(x), dtype=torch.long, device="cuda")
    given: dict[str, Any] = {}
    if criterion == "taylor":
        given = {"batches": [x], "loss": lambda m, b: F.cross_entropy(m(b), labels)}
    result = secateur.prune(net, x, sparsity=0.5, criterion=criterion, **given)
    assert result.verification is not None
    assert result.verification.difference < 1e-5
    assert all_on_the_gpu(result.model)
    assert result.after.params < 0.5 * result.before.params


@pytest.mark.parametrize("settings", TRAINED.values(), ids=TRAINED)
def test_training_with_masks(
    net: nn.Module, x: Tensor, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Half the goal, saved, loaded into another pruner, and on to the goal and the cut."""
    config = Config(sparsity=0.5, schedule="linear", start=1, steps=4, **settings)
    twin = copy.deepcopy(net)
    pruner = Pruner(net, config, x)
    train(net, pruner, x, 3)
    pruner.save(tmp_path / "run.safetensors")
    other = Pruner(twin, config, x)
    other.load(tmp_path / "run.safetensors")
    twin.load_state_dict(net.state_dict())
    train(twin, other, x, 2)
    assert other.metrics()["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert all(mask.is_cuda for mask in masking.masks_on(twin).values())
    with torch.no_grad():
        masked = twin(x)
    smaller = other.finish().model
    assert all_on_the_gpu(smaller)
    assert torch.allclose(smaller(x), masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(TRAINED.keys() - {"random"}))  # its numbers come one by one
def test_waiting_does_not_grow_with_the_model(name: str) -> None:
    """A step reads what it must off the device at once, however many layers there are."""
    few, many = (waits(layers, TRAINED[name]) for layers in (2, 12))
    assert few == many
    learns = TRAINED[name].get("method") == "movement"
    assert learns or many[1] == 0, "between pruning steps it need not wait at all"


def waits(layers: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Return how often a step waits for the device: one that prunes, and one that does not."""
    torch.manual_seed(0)
    parts = [
        (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(layers)
    ]
    body = [m for part in parts for m in part]
    net = nn.Sequential(nn.Conv2d(3, 16, 3), *body, nn.Flatten(), nn.Linear(576, 5)).cuda()
    x = torch.randn(4, 3, 8, 8).cuda()
    settings = {**settings, "exclude": ("0", str(len(net) - 1))}
    pruner = Pruner(net, Config(sparsity=0.5, steps=2, every=2, **settings), x)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    found = []
    for _ in range(4):
        F.cross_entropy(net(x), torch.arange(4).cuda()).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                optimizer.step()
                pruner.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        optimizer.zero_grad()
        found.append(len([w for w in caught if "synchronizing" in str(w.message)]))
    return found[-1], found[-2]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "smaller"])
def test_compiled(net: nn.Module, x: Tensor, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph, forward and backward, of what has masks and of what was cut."""
    config = Config(criterion="l1", sparsity=0.5)
    pruner = Pruner(net, config, x)
    train(net, pruner, x, 2)
    model = net if masked else pruner.finish().model
    model.zero_grad()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    plain, compiled = copy.deepcopy(model), torch.compile(model, fullgraph=True)
    for each in (plain, compiled):
        each(x).square().sum().backward()
    with torch.no_grad():
        assert apart(compiled(x), plain(x)) < 1e-4
    for (name, a), (_, b) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert apart(b.grad, a.grad) < 1e-4, name


def apart(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return float((a - b).norm() / b.norm().clamp(min=1e-6))


def test_decisions_are_those_of_the_cpu(net: nn.Module, x: Tensor) -> None:
    """Single weights have their own scores: no sum over them could round otherwise."""
    config = Config(criterion="magnitude", granularity="element", scope="global", sparsity=0.7)
    there = Pruner(net, config, x).decide()
    here = Pruner(copy.deepcopy(net).cpu(), config, x.cpu()).decide()
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name].cpu(), here[name]) for name in here)


def test_a_scaler_that_skips_steps(net: nn.Module, x: Tensor) -> None:
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    config = Config(method="movement", sparsity=0.5, steps=6)
    pruner = Pruner(net, config, x, scaler=scaler)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    net.train()
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = net(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
    net.eval()
    assert scaler.get_scale() < 2.0**40, "steps were skipped"
    assert all(p.isfinite().all() for p in net.parameters())
    assert pruner.finish().verification is not None


@pytest.mark.parametrize("kind", [LevelPruner, FPGMPruner])
def test_nni(net: nn.Module, x: Tensor, kind: Any) -> None:
    config = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}]
    pruner = kind(net, config)
    _, masks = pruner.compress()
    made = [mask for found in masks.values() for mask in found.values() if mask is not None]
    assert made
    assert all(mask.is_cuda for mask in made)
    model = pruner.unwrap_model()
    ModelSpeedup(model, x, masks).speedup_model()
    assert all_on_the_gpu(net)
    assert net(x).isfinite().all()


def test_the_check_leaves_precision_and_generators_as_they_were(x: Tensor) -> None:
    torch.manual_seed(0)
    layers = [m for _ in range(30) for m in (nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 64, 3), *layers).cuda().eval()
    generators = torch.get_rng_state(), torch.cuda.get_rng_state()
    precision = torch.backends.cudnn.allow_tf32
    result = secateur.prune(model, x, sparsity=0.5)
    assert result.verification is not None
    assert result.verification.difference < 1e-5
    assert torch.backends.cudnn.allow_tf32 is precision
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert torch.equal(torch.cuda.get_rng_state(), generators[1])


def test_files(net: nn.Module, x: Tensor, tmp_path: Path) -> None:
    smaller = secateur.prune(net, x, sparsity=0.5).model
    save_pruned(smaller, tmp_path)
    for device in ("cpu", "cuda"):
        loaded = load_pruned(tmp_path, Net().to(device).eval())
        assert torch.allclose(loaded(x.to(device)).cpu(), smaller(x).cpu(), rtol=1e-4, atol=1e-5)


class Split(Net):
    """The stem on the CPU, the rest on the GPU."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x.cpu()))).cuda()
        y = self.outer_norm(self.outer(F.relu(self.inner_norm(self.inner(x)))))
        return self.head(F.relu(x + y).mean((2, 3)))


@pytest.mark.parametrize("settings", TRAINED.values(), ids=TRAINED)
def test_a_model_on_two_devices(x: Tensor, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = Split().cuda().eval()
    net.stem.cpu()
    net.norm.cpu()
    config = Config(sparsity=0.5, schedule="linear", start=1, steps=2, **settings)
    pruner = Pruner(net, config, x)
    train(net, pruner, x)
    assert pruner.metrics()["sparsity"] == pytest.approx(0.5, abs=0.05)
    before = {name: p.device for name, p in net.named_parameters()}
    smaller = pruner.finish().model
    assert {name: p.device for name, p in smaller.named_parameters()} == before


def test_semi_structured_when_a_layer_is_large_then_torch_computes_the_same_with_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 4096, bias=False), nn.ReLU(), nn.Linear(4096, 64))
    model = secateur.prune(
        model.half().cuda(),
        torch.zeros(1, 4096).half().cuda(),
        criterion="magnitude",
        granularity="2:4",
    ).model.eval()
    x = torch.randn(8192, 4096, device="cuda", dtype=torch.float16)
    with torch.inference_mode():
        dense = model(x)
        found = secateur.semi_structured(model, x)
        assert {layer.name for layer in found} == {"0", "2"}
        torch.testing.assert_close(model(x), dense, rtol=2e-2, atol=2e-2)
    assert all(layer.converted is not bool(layer.why) for layer in found)
    assert all(layer.dense and layer.sparse for layer in found if layer.converted)
