"""NNI's evaluators drive a live trainer, tell after each optimizer step, and leave no trace."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur import nni
from secateur.errors import ConfigError, MissingExtraError
from tests import trained
from tests.trained import LIVE, Live


class Steps:
    """Counts, and remembers whether the gradients were still there."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.count = 0
        self.gradients: list[bool] = []

    def __call__(self) -> None:
        self.count += 1
        self.gradients.append(all(p.grad is not None for p in self.model.parameters()))


every_trainer = pytest.mark.parametrize("kind", LIVE)


@pytest.fixture
def live(kind: str, tmp_path: Any) -> Live:
    return trained.live(kind, tmp_path)


@every_trainer
def test_train_when_max_steps_is_given_then_makes_so_many_steps_with_gradients(live: Live) -> None:
    steps = Steps(live.model)
    live.evaluator.train(live.model, steps, max_steps=7)
    assert (steps.count, all(steps.gradients)) == (7, True)


@every_trainer
def test_train_when_max_epochs_is_given_then_trains_so_many_epochs(live: Live) -> None:
    steps = Steps(live.model)
    live.evaluator.train(live.model, steps, max_epochs=2)
    assert steps.count == 2 * live.batches


@every_trainer
def test_train_when_called_twice_then_the_second_is_as_long_as_the_first(live: Live) -> None:
    steps = Steps(live.model)
    live.evaluator.train(live.model, steps, max_steps=5)
    live.evaluator.train(live.model, steps, max_steps=5)
    assert steps.count == 10


@every_trainer
def test_train_when_done_then_the_weights_have_learned_and_no_hook_is_left(live: Live) -> None:
    before = live.loss()
    live.evaluator.train(live.model, lambda: None, max_steps=live.batches)
    assert live.loss() < before
    assert live.hooks() == 0


@every_trainer
def test_train_when_after_step_raises_then_it_comes_through_and_no_hook_is_left(live: Live) -> None:
    def after_step() -> None:
        raise LookupError("stop here")

    with pytest.raises(LookupError, match="stop here"):
        live.evaluator.train(live.model, after_step, max_steps=3)
    assert live.hooks() == 0
    steps = Steps(live.model)
    live.evaluator.train(live.model, steps, max_steps=3)
    assert steps.count == 3


@every_trainer
def test_evaluate_when_trained_then_the_metric_rises(live: Live) -> None:
    before = live.evaluator.evaluate(live.model)
    live.evaluator.train(live.model, lambda: None, max_steps=2 * live.batches)
    assert live.evaluator.evaluate(live.model) > before


def test_train_when_the_function_ignores_max_steps_then_it_is_stopped_before_one_more() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[Any] = []

    def endless(model: nn.Module, optimizer: Any, training_step: Any, *rest: Any) -> None:
        seen.extend(rest)
        try:
            while True:
                training_step(torch.ones(1, 2), model).backward()
                optimizer.step()
                optimizer.zero_grad()
        except Exception:
            pytest.fail("what ends the training must not look like an error in it")

    weights: list[Tensor] = []
    evaluator = nni.TorchEvaluator(endless, optimizer, lambda batch, model: model(batch).sum())
    evaluator.train(model, lambda: weights.append(model.weight.detach().clone()), max_steps=3)
    assert seen == [None, 3, None]
    assert len(weights) == 3
    assert torch.equal(model.weight, weights[-1])
    assert model.weight.grad is None


def test_train_when_the_function_ends_by_itself_then_what_follows_its_last_step_runs() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def training_func(
        model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, epochs: None
    ) -> None:
        for _ in range(max_steps):
            optimizer.zero_grad()
            step(torch.ones(1, 2), model).backward()
            optimizer.step()
            scheduler.step()

    evaluator = nni.TorchEvaluator(
        training_func, optimizer, lambda batch, model: model(batch).sum(), scheduler
    )
    evaluator.train(model, lambda: None, max_steps=3)
    assert scheduler.get_last_lr() == [0.125]


def test_train_when_several_optimizers_are_given_then_the_one_of_the_model_counts() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (other, model)]
    got: list[Any] = []

    def training_func(model: nn.Module, optimizers: Any, *_: Any) -> None:
        got.append(optimizers)
        for _ in range(2):
            optimizers[0].step()
            optimizers[0].step()
            optimizers[1].step()

    steps = Steps(model)
    evaluator = nni.TorchEvaluator(training_func, optimizers, lambda batch, model: None)
    evaluator.train(model, steps, max_steps=2)
    assert got == [optimizers]
    assert steps.count == 2


def test_train_when_accelerate_wraps_the_optimizer_then_its_inner_steps_count() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 1)
    optimizer = accelerator.prepare(torch.optim.SGD(model.parameters(), lr=0.1))

    def training_func(model: nn.Module, optimizer: Any, *_: Any) -> None:
        for _ in range(4):
            accelerator.backward(model(torch.ones(1, 2)).sum())
            optimizer.step()

    steps = Steps(model)
    nni.TorchEvaluator(training_func, optimizer, lambda *_: None).train(model, steps)
    assert steps.count == 4


def test_torch_evaluator_when_the_optimizer_trains_another_model_then_says_so() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    evaluator = nni.TorchEvaluator(lambda *_: None, optimizer, lambda *_: None)
    with pytest.raises(ConfigError, match="no optimizer .* trains a parameter of this model"):
        evaluator.train(nn.Linear(2, 1), lambda: None)


def test_torch_evaluator_when_arguments_are_wrong_then_names_each() -> None:
    with pytest.raises(ConfigError) as caught:
        nni.TorchEvaluator(None, [], "step")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3


def test_evaluate_when_there_is_no_evaluating_func_then_says_so() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    evaluator = nni.TorchEvaluator(lambda *_: None, optimizer, lambda *_: None)
    with pytest.raises(ConfigError, match="evaluating_func"):
        evaluator.evaluate(nn.Linear(2, 1))


def test_transformers_evaluator_when_the_trainer_makes_its_models_then_says_so() -> None:
    trainer = SimpleNamespace(add_callback=None, args=None, model_init=lambda: None)
    with pytest.raises(ConfigError, match="model_init"):
        nni.TransformersEvaluator(trainer)


def test_transformers_evaluator_when_another_model_is_pruned_then_says_so(tmp_path: Any) -> None:
    live = trained.live("hf", tmp_path)
    with pytest.raises(ConfigError, match="another model"):
        live.evaluator.train(trained.net(), lambda: None, max_steps=1)


@pytest.mark.parametrize("evaluator", [nni.LightningEvaluator, nni.TransformersEvaluator])
def test_trainer_evaluator_when_given_something_else_then_says_so(evaluator: Any) -> None:
    with pytest.raises(ConfigError, match="must be a .* Trainer, got 3"):
        evaluator(3, None)


def test_train_when_a_trainer_has_settings_of_its_own_then_they_are_back_afterwards(
    tmp_path: Any,
) -> None:
    hf = trained.live("hf", tmp_path)
    hf.evaluator.train(hf.model, lambda: None, max_steps=2)
    trainer = hf.evaluator.trainer
    assert (trainer.args.max_steps, trainer.args.num_train_epochs) == (-1, 3)
    assert (trainer.optimizer, trainer.lr_scheduler) == (None, None)
    lightning = trained.live("lightning", tmp_path)
    lightning.evaluator.train(lightning.model, lambda: None, max_steps=2)
    assert (lightning.evaluator.trainer.max_steps, lightning.evaluator.trainer.max_epochs) == (
        -1,
        1000,
    )


def test_deepspeed_evaluator_when_deepspeed_is_absent_then_says_what_to_install() -> None:
    with pytest.raises(MissingExtraError, match=r'pip install "secateur\[deepspeed\]"'):
        nni.DeepspeedTorchEvaluator(lambda *_: None, lambda *_: None, "config.json")


def test_deepspeed_evaluator_when_it_trains_then_drives_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in with the three names that are used: what DeepSpeed itself does is not tested."""
    library = ModuleType("deepspeed")

    class Engine(nn.Module):
        def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer):
            super().__init__()
            self.module, self.basic_optimizer = module, optimizer
            self.loaded: str | None = None

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

        def backward(self, loss: Tensor) -> None:
            loss.backward()

        def step(self) -> None:
            self.basic_optimizer.step()

        def load_checkpoint(self, load_dir: str) -> None:
            self.loaded = load_dir

    given: dict[str, Any] = {}

    def initialize(**arguments: Any) -> tuple[Any, ...]:
        given.update(arguments)
        engine = Engine(arguments["model"], arguments["optimizer"])
        return engine, arguments["optimizer"], None, None

    library.initialize = initialize  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", library)
    engines: list[Any] = []

    def training_func(engine: Any, optimizer: Any, step: Any, *_: Any) -> None:
        engines.append(engine)
        while True:
            engine.backward(step(torch.ones(1, 2), engine))
            engine.step()

    model = nn.Linear(2, 1)
    evaluator = nni.DeepspeedTorchEvaluator(
        training_func,
        lambda batch, model: model(batch).sum(),
        {"train_batch_size": 1},
        torch.optim.SGD(model.parameters(), lr=0.1),
        resume_from_checkpoint_args={"load_dir": "there"},
    )
    steps = Steps(model)
    evaluator.train(model, steps, max_steps=3)
    assert steps.count == 3
    assert given["config"] == {"train_batch_size": 1}
    assert engines[0].loaded == "there"
