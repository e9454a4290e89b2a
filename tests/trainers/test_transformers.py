"""A pruner in Hugging Face's Trainer: stepped, logged, saved, resumed, cut."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur import Config, Pruner
from secateur.errors import ConfigError, FileError
from tests.trained import BATCH, RESUMED, Labelled, digits, net
from tests.zoo import torchvision_models

CONFIG = Config(sparsity=0.5, criterion="taylor", schedule="cubic", steps=3, every=2)
EXAMPLE = {"pixels": torch.zeros(2, 1, 8, 8)}


def callback(pruner: Pruner, **options: Any) -> Any:
    torchvision_models()  # transformers imports torchvision
    from secateur.trainers.transformers import PruningCallback

    return PruningCallback(pruner, **options)


def trainer(model: nn.Module, folder: Path, *callbacks: Any, **arguments: Any) -> Any:
    torchvision_models()
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    pairs = list(zip(digits().train_images, digits().train_labels, strict=True))
    data: Any = [{"pixels": x, "labels": y} for x, y in pairs]
    settings = {
        "per_device_train_batch_size": BATCH,
        "max_steps": 8,
        "save_strategy": "no",
        "logging_steps": 2,
        "learning_rate": 3e-3,
        **arguments,
    }
    made = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            **settings,
        ),
        train_dataset=data,
        eval_dataset=data[:BATCH],
        callbacks=list(callbacks),
    )
    made.remove_callback(PrinterCallback)
    return made


@pytest.fixture
def model() -> Labelled:
    return Labelled(net())


@pytest.fixture
def pruner(model: Labelled) -> Pruner:
    return Pruner(model, CONFIG, EXAMPLE)


def test_train_when_gradients_are_accumulated_then_steps_once_per_optimizer_step(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    trainer(model, tmp_path, callback(pruner), gradient_accumulation_steps=3, max_steps=4).train()
    assert (pruner.calls, pruner.updates) == (4, 2)


def test_train_when_it_logs_then_the_metrics_are_in_the_log(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    made = trainer(model, tmp_path, callback(pruner))
    made.train()
    logged = [log["pruning/sparsity"] for log in made.state.log_history if "loss" in log]
    assert len(logged) == 4
    assert logged == sorted(logged)
    assert logged[-1] == pruner.metrics()["sparsity"]


def test_train_begin_when_the_loss_is_scaled_then_the_pruner_learns_by_how_much(
    pruner: Pruner,
) -> None:
    scaler = torch.amp.GradScaler("cpu")
    torchvision_models()
    from transformers import TrainerState

    made, state = callback(pruner), TrainerState(global_step=0)
    made.on_train_begin(None, state, None, optimizer=SimpleNamespace(scaler=scaler))
    assert pruner.scaler is scaler
    made.on_train_begin(None, state, None, optimizer=SimpleNamespace())
    assert pruner.scaler is scaler


def test_evaluate_when_called_then_returns_no_metric_of_the_pruner(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    made = trainer(model, tmp_path, callback(pruner))
    made.train()
    metrics = made.evaluate(made.train_dataset[:BATCH])
    assert not any("pruning" in name for name in metrics)


def test_attach_when_a_logger_is_there_already_then_it_sees_the_metrics(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    torchvision_models()
    from transformers import TrainerCallback

    class Logger(TrainerCallback):
        seen: list[dict[str, float]] = []

        def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
            self.seen.append(dict(logs))

    made = trainer(model, tmp_path, Logger())
    callback(pruner).attach(made)
    made.train()
    assert Logger.seen[0]["pruning/pruning_step"] == 1.0


def test_train_when_finish_is_asked_for_then_the_model_is_smaller_at_the_end(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    before = sum(p.numel() for p in model.parameters())
    made = callback(pruner, finish=True)
    trainer(model, tmp_path, made).train()
    assert made.result.model is model
    assert made.result.verification.passed
    assert sum(p.numel() for p in model.parameters()) < before / 2


def test_save_when_masks_are_on_then_writes_plain_names_and_masked_values(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    names = set(model.state_dict())
    made = trainer(model, tmp_path, callback(pruner), save_strategy="steps", save_steps=8)
    made.train()
    made.save_model(str(tmp_path / "saved"))
    images = digits().test_images
    for folder in (tmp_path / "checkpoint-8", tmp_path / "saved"):
        saved = load_file(folder / "model.safetensors")
        assert set(saved) == names
        assert all(not saved[name][~mask].any() for name, mask in pruner.masks.items())
        fresh = Labelled(net(seed=1))
        fresh.load_state_dict(saved)
        assert torch.equal(logits(fresh, images), logits(model, images))


def logits(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(images)["logits"]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"criterion": "taylor", "schedule": "cubic", "steps": 3, "every": 2}, id="taylor"
        ),
        pytest.param({"method": "movement", "start": 1, "steps": 6}, id="movement"),
        *RESUMED,
    ],
)
def test_train_when_resumed_from_a_checkpoint_then_ends_as_if_never_broken(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    def run(folder: Path, resume: bool = False, **arguments: Any) -> tuple[Labelled, Pruner]:
        model = Labelled(net())
        pruner = Pruner(model, Config(sparsity=0.5, **settings), EXAMPLE)
        made = trainer(
            model, folder, callback(pruner), save_strategy="steps", save_steps=3, **arguments
        )
        made.train(resume_from_checkpoint=resume or None)
        return model, pruner

    whole, pruner = run(tmp_path / "a")
    last = (tmp_path / "a" / "checkpoint-3").rename(tmp_path / "checkpoint-3")
    (tmp_path / "b").mkdir()
    last.rename(tmp_path / "b" / "checkpoint-3")
    resumed, again = run(tmp_path / "b", resume=True)
    assert again.calls == pruner.calls == 8
    for name, mask in pruner.masks.items():
        assert torch.equal(again.masks[name], mask), name
    for (name, ours), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_train_when_the_checkpoint_has_no_pruner_then_says_where_it_looked(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 3}
    trainer(copy.deepcopy(model), tmp_path, max_steps=3, **arguments).train()
    with pytest.raises(FileError, match=r"checkpoint-3.*is missing: give .*resume_from"):
        trainer(model, tmp_path, callback(pruner), **arguments).train(resume_from_checkpoint=True)


def test_save_pretrained_when_masks_are_on_then_from_pretrained_computes_the_same(
    tmp_path: Path,
) -> None:
    torchvision_models()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    model = BertModel(config).eval()
    example = {"input_ids": torch.arange(10)[None]}
    pruner = Pruner(model, Config(sparsity=0.5, granularity="element", types=["Linear"]), example)
    pruner.step()
    model.save_pretrained(tmp_path)
    again = BertModel.from_pretrained(tmp_path)
    with torch.no_grad():
        ours, theirs = model(**example), again(**example)
    assert torch.equal(theirs.last_hidden_state, ours.last_hidden_state)
    weight = again.get_parameter("encoder.layer.0.attention.self.query.weight")
    assert int((weight == 0).sum()) == weight.numel() // 2


def test_train_when_the_pruner_is_of_another_model_then_it_is_refused_before_training(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="another Labelled than the one that is trained"):
        trainer(Labelled(net()), tmp_path, callback(pruner)).train()
    made = trainer(model, tmp_path, callback(pruner))
    made.model_init = lambda: Labelled(net())
    with pytest.raises(ConfigError, match="model_init"):
        made.train()
    assert pruner.calls == 0
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_train_when_it_ends_before_anything_is_pruned_then_that_is_said_first(
    model: Labelled, tmp_path: Path
) -> None:
    pruner = Pruner(model, Config(sparsity=0.5, start=20), EXAMPLE)
    with pytest.raises(ConfigError, match="ends after 8 steps: pruning begins with step 21"):
        trainer(model, tmp_path, callback(pruner, finish=True)).train()
    assert pruner.calls == 0
    trainer(model, tmp_path, callback(pruner)).train()  # not to be cut: a training of many
    assert pruner.calls == 8


@pytest.mark.parametrize("larger", [True, False])
def test_train_when_the_best_is_of_before_the_goal_then_model_and_masks_are_those_of_then(
    larger: bool, model: Labelled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pruner = Pruner(model, Config(sparsity=0.5, schedule="cubic", steps=8), EXAMPLE)
    own = callback(pruner, finish=True)
    made = trainer(
        model,
        tmp_path,
        own,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="measured",
        greater_is_better=larger,
    )
    steps: list[int] = []

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        steps.append(made.state.global_step)
        metrics = {"eval_measured": float(made.state.global_step)}
        made.callback_handler.on_evaluate(made.args, made.state, made.control, metrics)
        return metrics

    made.evaluate = evaluate
    made.train()
    best = 8 if larger else 2
    assert Path(made.state.best_model_checkpoint).name == f"checkpoint-{best}"
    assert pruner.updates == best
    assert ("was loaded as the best" in caplog.text) is not larger
    early = f"after {best} of 8 pruning steps"
    assert any(early in warning for warning in own.result.warnings) is not larger


def test_train_when_there_are_two_callbacks_then_they_are_refused_before_training(
    model: Labelled, pruner: Pruner, tmp_path: Path
) -> None:
    other = Pruner(model, CONFIG.replace(names=["*"]), EXAMPLE)
    with pytest.raises(ConfigError, match="two PruningCallbacks"):
        trainer(model, tmp_path, callback(pruner), callback(other)).train()
    assert pruner.calls == other.calls == 0
    again = callback(pruner)
    trainer(model, tmp_path, again).train()
    trainer(model, tmp_path, again).train()  # another training is none of the same
    assert pruner.calls == 16
