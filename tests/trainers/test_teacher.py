"""A teacher in each trainer: the gradients are those of the mix, whatever the trainer does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Config, Pruner, distillation_loss
from secateur.errors import ConfigError
from secateur.training.distillation import taught
from tests.trained import BATCH, Labelled, digits, net
from tests.trainers import test_lightning as lightning
from tests.trainers import test_transformers as huggingface

CONFIG = Config(sparsity=0.5, start=1)
TEACHER: dict[str, Any] = {"teacher": "dense", "weight": 0.6, "temperature": 3.0}


def expected(model: nn.Module, steps: int, accumulated: int) -> dict[str, torch.Tensor]:
    """Return what plain SGD makes of the mix, in batches in order, with the pruner's masks."""
    dense = copy.deepcopy(model).eval()
    pruner = Pruner(model, CONFIG, torch.zeros(2, 1, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    images = digits().train_images.split(BATCH)
    labels = digits().train_labels.split(BATCH)
    for step in range(steps):
        model.train()
        optimizer.zero_grad()
        for i in range(step * accumulated, (step + 1) * accumulated):
            logits = model(images[i])
            with torch.no_grad():
                told = dense(images[i])
            loss = 0.4 * F.cross_entropy(logits, labels[i])
            ((loss + 0.6 * distillation_loss(logits, told, 3.0)) / accumulated).backward()
        optimizer.step()
        pruner.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_close(found: nn.Module, right: dict[str, torch.Tensor]) -> None:
    """Roundings, which processors order otherwise, come to 3e-5; 0.58 is told from 0.6 here."""
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, right[name], msg=name, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("accumulated", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_fit_when_lightning_has_a_teacher_then_trains_on_the_mix(
    accumulated: int, tmp_path: Path
) -> None:
    model = lightning.classifier()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.05)
    right = expected(copy.deepcopy(model.net), 4, accumulated)
    made = lightning.callback(Pruner(model, CONFIG, lightning.EXAMPLE), **TEACHER)
    settings = {"max_steps": 4, "accumulate_grad_batches": accumulated}
    lightning.trainer(tmp_path, made, **settings).fit(model, lightning.loader())
    assert_close(model.net, right)
    assert not made.distillation.waits


@pytest.mark.parametrize("accumulated", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_train_when_hugging_face_has_a_teacher_then_trains_on_the_mix(
    accumulated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Labelled(net())
    right = expected(copy.deepcopy(model.net), 4, accumulated)
    made = huggingface.callback(Pruner(model, CONFIG, huggingface.EXAMPLE), **TEACHER)
    trainer = huggingface.trainer(
        model,
        tmp_path,
        made,
        gradient_accumulation_steps=accumulated,
        max_steps=4,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    trainer.train_dataset = trainer.train_dataset[: 4 * accumulated * BATCH]
    monkeypatch.setattr(
        trainer,
        "_get_train_sampler",
        lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset),
    )
    trainer.train()
    assert_close(model.net, right)
    assert not model._forward_hooks


class Tagger(nn.Module):
    """A class for each position; its loss is of a whole step, as of Hugging Face's models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up, self.head = nn.Embedding(9, 8), nn.Linear(8, 12), nn.Linear(12, 4)

    def logits(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.up(self.embed(input_ids))))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        **others: Any,
    ) -> dict[str, Tensor]:
        logits = self.logits(input_ids)
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return {
            "loss": loss / (num_items_in_batch or labels.ne(-100).sum()),
            "logits": logits,
        }


def sentences() -> list[dict[str, Tensor]]:
    """Return batches of two sentences, padded to five words, of other lengths in each."""
    made, draw = [], torch.Generator().manual_seed(3)
    for lengths in ([5, 4], [1, 2], [3, 1], [2, 5]):
        shown = torch.arange(5) < torch.tensor(lengths)[:, None]
        words = torch.randint(1, 9, (2, 5), generator=draw).where(shown, 0)
        labels = (words % 4).where(shown, -100)
        made.append({"input_ids": words, "attention_mask": shown.long(), "labels": labels})
    return made


@pytest.mark.parametrize("accumulated", [1, 2])
def test_train_when_sentences_are_padded_then_each_position_of_a_step_counts_alike(
    accumulated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = Tagger(), sentences()
    mine, dense = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for each in (model, mine):
            each.up.weight.add_(0.3)
    optimizer = torch.optim.SGD(mine.parameters(), 0.05)
    for first in range(0, 4, accumulated):
        step = batches[first : first + accumulated]
        whole = torch.cat([b["attention_mask"].bool().flatten() for b in step])
        logits, told = (
            torch.cat([net.logits(b["input_ids"]).flatten(0, 1) for b in step])[whole]
            for net in (mine, dense)
        )
        labels = torch.cat([b["labels"].flatten() for b in step])[whole]
        optimizer.zero_grad()
        loss = 0.4 * F.cross_entropy(logits, labels)
        (loss + 0.6 * distillation_loss(logits, told, 3.0)).backward()
        optimizer.step()
    example = {k: v for k, v in batches[0].items() if k != "labels"}
    pruner = Pruner(model, Config(sparsity=0.5, start=9), example)
    given = {"teacher": dense, "weight": 0.6, "temperature": 3.0}
    trainer = huggingface.trainer(
        model,
        tmp_path,
        huggingface.callback(pruner, **given),
        gradient_accumulation_steps=accumulated,
        per_device_train_batch_size=2,
        max_steps=4 // accumulated,
        optim="sgd",
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    rows = [
        dict(zip(b, row, strict=True)) for b in batches for row in zip(*b.values(), strict=True)
    ]
    trainer.train_dataset = rows
    order = torch.utils.data.SequentialSampler(rows)
    monkeypatch.setattr(trainer, "_get_train_sampler", lambda *_: order)
    trainer.train()
    assert_close(model, dict(mine.state_dict()))


@pytest.mark.parametrize("kind", [pytest.param("lightning", marks=pytest.mark.slow), "hf"])
def test_fit_when_hidden_layers_are_named_then_they_are_matched(kind: str, tmp_path: Path) -> None:
    if kind == "hf":
        model: Any = Labelled(net())
        names = ["net.*"]
        pruner = Pruner(model, CONFIG, huggingface.EXAMPLE)
        made = huggingface.callback(pruner, **TEACHER, hidden=names)
        huggingface.trainer(model, tmp_path, made, max_steps=2).train()
    else:
        model = lightning.classifier()
        pruner = Pruner(model, CONFIG, lightning.EXAMPLE)
        made = lightning.callback(pruner, **TEACHER, hidden=["net.*"])
        lightning.trainer(tmp_path, made, max_steps=2).fit(model, lightning.loader())
    assert made.distillation.matched
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_train_when_the_loss_is_made_elsewhere_then_says_that_no_teacher_was_heard(
    tmp_path: Path,
) -> None:
    model = Labelled(net())
    made = huggingface.callback(Pruner(model, CONFIG, huggingface.EXAMPLE), teacher="dense")
    trainer = huggingface.trainer(model, tmp_path, made)
    trainer.compute_loss_func = lambda out, y, **_: F.cross_entropy(out["logits"], y)
    with pytest.raises(ConfigError, match="compute_loss_func"):
        trainer.train()


def test_fit_when_only_a_part_runs_forward_then_says_whose_pruner_it_takes(tmp_path: Path) -> None:
    model = lightning.classifier()
    model.training_step = lambda batch, batch_idx: F.cross_entropy(model.net(batch[0]), batch[1])
    made = lightning.callback(Pruner(model, CONFIG, lightning.EXAMPLE), teacher="dense")
    with pytest.raises(ConfigError, match="of that part"):
        lightning.trainer(tmp_path, made).fit(model, lightning.loader())


@pytest.mark.parametrize("same", [True, False])
def test_resume_when_the_teacher_is_another_then_it_is_refused(same: bool, tmp_path: Path) -> None:
    def callback(model: nn.Module) -> Any:
        return huggingface.callback(Pruner(model, CONFIG, huggingface.EXAMPLE), teacher="dense")

    def trainer(model: nn.Module, callback: Any) -> Any:
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        return huggingface.trainer(model, tmp_path, callback, **settings)

    first = Labelled(net())
    trainer(first, callback(first)).train()
    (tmp_path / "checkpoint-4").rename(tmp_path / "later")
    second = Labelled(net())
    if not same:
        with torch.no_grad():
            next(second.net.parameters()).mul_(2)
    resumed = trainer(second, callback(second))
    if same:
        resumed.train(resume_from_checkpoint=True)
        assert_close(second, first.state_dict())
        return
    with pytest.raises(ConfigError, match="other weights"):
        resumed.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("same", [True, False])
def test_load_when_lightnings_state_has_another_teacher_then_it_is_refused(same: bool) -> None:
    made = []
    for factor in (1.0, 1.0 if same else 2.0):
        model = lightning.classifier()
        with torch.no_grad():
            next(model.net.parameters()).mul_(factor)
        made.append(lightning.callback(Pruner(model, CONFIG, lightning.EXAMPLE), teacher="dense"))
    if same:
        made[1].load_state_dict(made[0].state_dict())
        return
    with pytest.raises(ConfigError, match="other weights"):
        made[1].load_state_dict(made[0].state_dict())


@pytest.mark.parametrize("setting", [{"weight": 0.5}, {"temperature": 2.0}, {"hidden": ["0"]}])
def test_callback_when_a_setting_is_of_a_teacher_and_there_is_none_then_config_error(
    setting: dict[str, Any],
) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    settings = {"weight": 0.9, "temperature": 4.0, "hidden": (), **setting}
    with pytest.raises(ConfigError, match="teacher='dense'"):
        taught(model, None, **settings)
