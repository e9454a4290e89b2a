"""In what a fit trains: what was asked, else what is faster here and as near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import Fitted, fit
from secateur.errors import ConfigError, FileError
from secateur.fitting import precision
from secateur.masks.resume import read_state, write_state
from secateur.training import distillation_loss
from tests.trained import digits, net

X = torch.randn(16, 1, 8, 8)


class Seeing(nn.Module):
    """Notes the type of what its first layer makes in training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32), nn.Linear(32, 10)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        if self.training and torch.is_grad_enabled():
            self.seen.add(x.dtype)
        return self.second(x.relu())


def made(model: nn.Module, **settings: Any) -> Fitted:
    torch.manual_seed(0)
    images, labels = digits().train_images[:64], digits().train_labels[:64]
    given = {"train": [(images, labels)], "evaluate": lambda model: 0.5, "repair": "none"}
    budget = {} if "minutes" in settings else {"steps": 4}
    return fit(model, 0.5, on_round=lambda made: None, **{**given, **budget, **settings})


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
@pytest.mark.parametrize("budget", [{"steps": 4}, {"minutes": 0.02}])
def test_fit_when_a_precision_is_asked_for_then_steps_compute_in_it(
    asked: str, budget: dict[str, Any]
) -> None:
    fitted = made(Seeing(), precision=asked, **budget)
    assert fitted.precision == asked
    assert fitted.model.get_submodule("").seen == {getattr(torch, asked)}
    assert {p.dtype for p in fitted.model.parameters()} == {torch.float32}
    assert fitted.result.verification.passed


def test_fit_when_nothing_is_asked_and_steps_are_counted_then_it_is_the_same_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secateur.fitting.job.chosen", lambda *given: "bfloat16")
    assert made(net()).precision == "float32"
    loss = {"loss": lambda model, batch: model(batch[0]).square().mean()}
    assert made(net(), minutes=0.01, **loss).precision == "float32"
    assert made(net(), minutes=0.01).precision == "bfloat16"


def test_fit_when_it_goes_on_then_in_the_precision_that_it_began_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("secateur.fitting.job.chosen", lambda *given: "bfloat16")
    assert made(net(), minutes=0.01, folder=tmp_path).precision == "bfloat16"
    monkeypatch.setattr("secateur.fitting.job.chosen", lambda *given: "float32")
    torch.manual_seed(0)
    assert made(net(), minutes=0.01, folder=tmp_path).precision == "bfloat16"


def test_fit_when_a_state_says_another_precision_then_it_is_none_of_a_fit(tmp_path: Path) -> None:
    made(net(), folder=tmp_path)
    file = tmp_path / "fit.safetensors"
    write_state(file, {**read_state(file), "precision": "float8"})
    with pytest.raises(FileError, match="holds no state of a fit"):
        made(net(), folder=tmp_path)


@pytest.mark.parametrize("wrong", ["float23", "bf16", None, 16])
def test_fit_when_there_is_no_such_precision_then_says_which_there_are(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="precision must be one of auto, float32, bfloat16"):
        made(net(), precision=wrong)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1))


class Refusing(Plain):
    """Its code wants float32, as what goes through numpy does: always, or in training alone."""

    def __init__(self, error: Exception, trained: bool = False) -> None:
        super().__init__()
        self.error, self.trained = error, trained

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if x.dtype == torch.bfloat16 and self.training >= self.trained:
            raise self.error
        return x


class Backward(Plain):
    """Its backward wants float32."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if x.dtype == torch.bfloat16 and x.requires_grad:
            x.register_hook(_refuse)
        return x


def _refuse(gradient: Tensor) -> None:
    raise RuntimeError("expected scalar type Float but found BFloat16")


class Coarse(Plain):
    """Its outputs are small differences of large numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) + 1000.0) - 1000.0


class Timed:
    """Autocast that takes another time than computing does: so much of each step."""

    def __init__(self, half: float, monkeypatch: pytest.MonkeyPatch):
        self.now, self.half, real = 0.0, half, precision.autocast

        def autocast(model: nn.Module, asked: str) -> Any:
            self.now += self.half if asked == "bfloat16" else 1.0
            return real(model, asked)

        monkeypatch.setattr(precision, "autocast", autocast)
        monkeypatch.setattr(precision.time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(
    ("build", "half", "expected"),
    [
        (net, 0.5, "bfloat16"),
        (Plain, 0.5, "bfloat16"),
        (net, 0.95, "float32"),
        (net, 2.0, "float32"),
        (lambda: net().double(), 0.5, "float32"),
        (lambda: net().bfloat16(), 0.5, "float32"),
        (lambda: Refusing(RuntimeError("Float")), 0.5, "float32"),
        (lambda: Refusing(TypeError("Got unsupported ScalarType BFloat16")), 0.5, "float32"),
        (lambda: Refusing(ValueError("Float"), trained=True), 0.5, "float32"),
        (Backward, 0.5, "float32"),
        (Coarse, 0.5, "float32"),
    ],
    ids=[
        *("faster", "plain", "alike", "slower", "of float64", "of bfloat16", "refusing"),
        *("refusing as numpy does", "refusing to train", "refusing gradients", "coarse"),
    ],
)
def test_chosen_when_bfloat16_is_faster_and_near_then_it_is_taken(
    build: Any, half: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = build()
    Timed(half, monkeypatch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = X.to(next(model.parameters()).dtype)
    found = precision.chosen(model, x, lambda each: each(x).float().square().mean())
    assert found == expected
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_chosen_when_the_model_fails_in_float32_too_then_its_error_is_told() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        precision.chosen(Plain(), torch.ones(1, 3), lambda model: model(torch.ones(1, 3)).sum())


def test_distillation_loss_when_logits_are_rounded_then_it_is_summed_in_float32() -> None:
    student, teacher = torch.randn(2, 64, 1000, generator=torch.Generator().manual_seed(0))
    found = distillation_loss(student.bfloat16(), teacher.bfloat16())
    exact = distillation_loss(student.bfloat16().double(), teacher.bfloat16().double())
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(exact), rel=1e-5)
