"""A pruner in Lightning's Trainer: stepped, logged, saved, resumed, cut."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from secateur import Config, Pruner
from secateur.errors import ConfigError
from tests.trained import BATCH, RESUMED, digits, net
from tests.zoo import torchvision_models

CONFIG = Config(sparsity=0.5, criterion="taylor", schedule="cubic", steps=3, every=2)
EXAMPLE = torch.zeros(2, 1, 8, 8)


def classifier(*, manual: bool = False, judged: bool = False) -> Any:
    torchvision_models()  # Lightning imports torchvision
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()
            self.automatic_optimization = not manual

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    class Judged(Classifier):
        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

        test_step = validation_step

        def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self(batch[0])

    return Judged() if judged else Classifier()


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(digits().train_images, digits().train_labels), BATCH)


def trainer(folder: Path, *callbacks: Any, **settings: Any) -> Any:
    import lightning.pytorch as pl

    return pl.Trainer(
        **{
            "max_steps": 8,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": list(callbacks),
            **settings,
        }
    )


def callback(pruner: Pruner, **options: Any) -> Any:
    from secateur.trainers.lightning import PruningCallback

    return PruningCallback(pruner, **options)


@pytest.mark.parametrize("manual", [False, True])
def test_fit_when_it_trains_then_steps_once_per_optimizer_step(
    manual: bool, tmp_path: Path
) -> None:
    model = classifier(manual=manual)
    pruner = Pruner(model, CONFIG, EXAMPLE)
    trainer(tmp_path, callback(pruner)).fit(model, loader())
    assert (pruner.calls, pruner.updates) == (8, 3)


def test_train_start_when_the_loss_is_scaled_then_the_pruner_learns_by_how_much() -> None:
    model = classifier()
    pruner = Pruner(model, CONFIG, EXAMPLE)
    scaler = torch.amp.GradScaler("cpu")
    started = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), optimizers=[model.configure_optimizers()]
    )
    callback(pruner).on_train_start(started, model)
    assert pruner.scaler is scaler


def test_fit_when_gradients_are_accumulated_then_steps_once_per_optimizer_step(
    tmp_path: Path,
) -> None:
    model = classifier()
    pruner = Pruner(model, CONFIG, EXAMPLE)
    trainer(tmp_path, callback(pruner), accumulate_grad_batches=3, max_steps=4).fit(model, loader())
    assert (pruner.calls, pruner.updates) == (4, 2)


def test_fit_when_there_is_a_logger_then_it_gets_the_metrics(tmp_path: Path) -> None:
    torchvision_models()
    from lightning.pytorch.loggers import CSVLogger

    model = classifier()
    pruner = Pruner(model, CONFIG, EXAMPLE)
    logger = CSVLogger(tmp_path, "run", "")
    trainer(tmp_path, callback(pruner), logger=logger, log_every_n_steps=1).fit(model, loader())
    with (tmp_path / "run" / "metrics.csv").open() as file:
        logged = [float(row["pruning/sparsity"]) for row in csv.DictReader(file)]
    assert len(logged) == 8
    assert logged == sorted(logged)
    assert logged[-1] == pytest.approx(pruner.metrics()["sparsity"])


def test_fit_when_finish_is_asked_for_then_the_model_is_smaller_at_the_end(tmp_path: Path) -> None:
    model = classifier()
    before = sum(p.numel() for p in model.parameters())
    made = callback(Pruner(model, CONFIG, EXAMPLE), finish=True)
    trainer(tmp_path, made).fit(model, loader())
    assert made.result.verification.passed
    assert sum(p.numel() for p in model.parameters()) < before / 2


def test_checkpoint_when_masks_are_on_then_has_plain_names_and_masked_values(
    tmp_path: Path,
) -> None:
    model = classifier()
    names = set(model.state_dict())
    pruner = Pruner(model, CONFIG, EXAMPLE)
    made = trainer(tmp_path, callback(pruner))
    made.fit(model, loader())
    made.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert set(saved) == names
    assert all(not saved[name][~mask].any() for name, mask in pruner.masks.items())
    fresh = classifier()
    fresh.load_state_dict(saved)
    images = digits().test_images
    with torch.no_grad():
        assert torch.equal(fresh.eval()(images), model.eval()(images))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
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
def test_fit_when_resumed_from_a_checkpoint_then_ends_as_if_never_broken(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """After the 18 steps of the first epoch: within one, Lightning itself resumes inexactly."""
    torchvision_models()
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(resume: Path | None = None) -> tuple[Any, Pruner]:
        model = classifier()
        pruner = Pruner(model, Config(sparsity=0.5, **settings), EXAMPLE)
        saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=18)
        made = trainer(tmp_path, callback(pruner), saver, max_steps=24, enable_checkpointing=True)
        made.fit(model, DataLoader(loader().dataset, BATCH, drop_last=True), ckpt_path=resume)
        return model, pruner

    whole, pruner = run()
    resumed, again = run(resume=tmp_path / "step=18.ckpt")
    assert again.calls == pruner.calls == 24
    for name, mask in pruner.masks.items():
        assert torch.equal(again.masks[name], mask), name
    for (name, ours), theirs in zip(resumed.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_fit_when_the_pruner_is_of_another_model_then_it_is_refused_before_training(
    tmp_path: Path,
) -> None:
    pruner = Pruner(classifier(), CONFIG, EXAMPLE)
    with pytest.raises(ConfigError, match="another Classifier than the one that is trained"):
        trainer(tmp_path, callback(pruner)).fit(classifier(), loader())
    assert pruner.calls == 0


def test_fit_when_it_ends_before_anything_is_pruned_then_says_so_first_unless_it_is_a_dry_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier()
    pruner = Pruner(model, Config(sparsity=0.5, start=20), EXAMPLE)
    with pytest.raises(ConfigError, match="ends after 8 steps: pruning begins with step 21"):
        trainer(tmp_path, callback(pruner, finish=True)).fit(model, loader())
    own = callback(pruner, finish=True)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, own, fast_dev_run=True).fit(model, loader())
    assert "fast_dev_run ended before the first pruning step" in caplog.text
    assert pruner.calls == 1
    assert own.result is None


def cut(folder: Path, *callbacks: Any) -> tuple[Any, Any, Any]:
    """Return a trainer that has cut a model, the model, and the callback that did."""
    model = classifier(judged=True)
    made = callback(Pruner(model, CONFIG, EXAMPLE), finish=True)
    run = trainer(folder, made, *callbacks, enable_checkpointing=True)
    run.fit(model, loader(), loader())
    return run, model, made


@pytest.mark.parametrize("stage", ["test", "validate", "predict"])
def test_stage_when_its_checkpoint_is_of_before_the_cut_then_says_what_to_do(
    stage: str, tmp_path: Path
) -> None:
    torchvision_models()
    from lightning.pytorch.callbacks import ModelCheckpoint

    run, model, _ = cut(tmp_path, ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4))
    getattr(run, stage)(model, loader(), ckpt_path=None)
    with pytest.raises(ConfigError, match=r"(?s)of before the cut: 'net\..*ckpt_path=None"):
        getattr(run, stage)(model, loader(), ckpt_path="best")
    assert not model._load_state_dict_pre_hooks


def test_fit_when_its_checkpoint_is_of_after_the_cut_then_says_what_to_do(tmp_path: Path) -> None:
    run, _, _ = cut(tmp_path)
    run.save_checkpoint(tmp_path / "small.ckpt")
    model = classifier()
    again = trainer(tmp_path, callback(Pruner(model, CONFIG, EXAMPLE)), max_steps=16)
    with pytest.raises(ConfigError, match=r"(?s)of after a cut: 'net\..*load_pruned"):
        again.fit(model, loader(), ckpt_path=tmp_path / "small.ckpt")
    assert not model._load_state_dict_pre_hooks


def test_validate_when_an_average_is_of_before_the_cut_then_says_what_to_do(tmp_path: Path) -> None:
    torchvision_models()
    from lightning.pytorch.callbacks import EMAWeightAveraging

    run, model, made = cut(tmp_path, EMAWeightAveraging(decay=0.5))
    with pytest.raises(ConfigError, match="EMAWeightAveraging holds an average"):
        run.validate(model, loader())
    trainer(tmp_path, made).validate(model, loader())
