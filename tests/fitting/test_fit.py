"""``fit``: within its budget, to its goal, and on from where it was killed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur import Fitted, analyze, fit
from secateur.errors import ConfigError, FileError, UnknownNameError
from secateur.fitting import Round
from secateur.fitting.deadline import Deadline, rate
from secateur.fitting.stream import OTHER_BATCHES, Stream
from secateur.masks.resume import read_state, write_state
from tests.trained import Labelled, digits, net

EXAMPLE = torch.zeros(2, 1, 8, 8)
SLOW = pytest.mark.slow
QUICK = ("a function", "channels", "keyword arguments", "positional arguments", "a loss")


def loader(shuffle: bool = False) -> DataLoader[Any]:
    data = TensorDataset(digits().train_images, digits().train_labels)
    return DataLoader(data, 64, shuffle=shuffle)


def right(model: nn.Module) -> float:
    """Return the share of the test images that a model tells."""
    with torch.no_grad():
        return float((model(digits().test_images).argmax(1) == digits().test_labels).float().mean())


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(4):
            for images, labels in loader():
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
    return model.eval()


def quiet(model: nn.Module, sparsity: float | None = 0.6, **settings: Any) -> Fitted:
    given = {"train": loader(), "evaluate": right, "steps": 40, "on_round": lambda made: None}
    if "minutes" in settings:
        del given["steps"]
    given["repair"] = "none"  # each takes as long as all steps of such a small network
    given["rounds"] = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return fit(model, sparsity, **{**given, **settings})


def macs(model: nn.Module) -> int:
    return analyze(model, EXAMPLE).cost().macs


def test_fit_when_done_then_the_goal_is_met_and_the_best_is_returned(dense: nn.Module) -> None:
    before = copy.deepcopy(dense.state_dict())
    rounds: list[Round] = []

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, 3e-3)

    made = quiet(dense, on_round=rounds.append, repair="bias", optimizer=adamw)
    assert macs(made.model) <= 0.4 * macs(dense)
    assert all(map(torch.equal, before.values(), dense.state_dict().values()))
    assert not dense._forward_hooks
    assert rounds == made.rounds
    assert [each.number for each in rounds] == [1, 2, 3, 3, 3, 3]
    assert rounds[-1].step == 40
    assert made.dense == right(dense)
    assert right(made.model) == made.best == max(each.value for each in rounds[-3:])
    assert made.best > 0.8
    assert all(goal.met for goal in made.result.goals)
    assert made.result.verification.passed
    assert "smaller" in str(made)


def test_fit_when_given_minutes_then_it_ends_in_time(dense: nn.Module) -> None:
    start = time.monotonic()
    made = quiet(dense, minutes=0.1, rounds=2)
    assert time.monotonic() - start < 60  # on a machine that has other things to do
    assert macs(made.model) <= 0.4 * macs(dense)
    assert made.rounds[-1].step > 5
    assert made.rounds[-1].seconds <= 60 * 0.1 + 1


@pytest.mark.parametrize("budget", [{"steps": 1}, {"steps": 3}, {"minutes": 1e-6}])
def test_fit_when_the_budget_is_too_short_then_the_goal_is_met_all_the_same(
    budget: dict[str, Any], dense: nn.Module
) -> None:
    made = quiet(dense, **budget)
    assert macs(made.model) <= 0.4 * macs(dense)
    assert made.rounds[-1].number == 3


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("at", "shuffle"),
    [(3, True), *(pytest.param(*case, marks=SLOW) for case in ((1, False), (1, True), (3, False)))],
)
def test_fit_when_it_was_stopped_then_it_ends_bit_for_bit_as_if_never(
    at: int, shuffle: bool, dense: nn.Module, tmp_path: Path
) -> None:
    settings = {"train": loader(shuffle), "steps": 12, "rounds": 2}
    whole = quiet(dense, **settings)
    seen = []

    def stopping(made: Round) -> None:
        seen.append(made)
        if len(seen) == min(at, len(whole.rounds) - 1):
            raise Stopped

    with pytest.raises(Stopped):
        quiet(dense, **settings, folder=tmp_path, on_round=stopping)
    torch.manual_seed(99)
    given = {**settings, "evaluate": right, "repair": "none"}
    again = fit(dense, 0.6, on_round=seen.append, folder=tmp_path, **given)
    assert [r.step for r in again.rounds] == [r.step for r in whole.rounds]
    assert [r.value for r in again.rounds] == [r.value for r in whole.rounds]
    assert len(seen) == len(whole.rounds)
    for (name, ours), theirs in zip(
        again.model.state_dict().items(), whole.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert [g.met for g in again.result.goals] == [g.met for g in whole.result.goals]


def test_fit_when_done_before_then_the_same_is_returned_at_once(
    dense: nn.Module, tmp_path: Path
) -> None:
    first = quiet(dense, folder=tmp_path, steps=10)
    again = quiet(dense, folder=tmp_path, steps=10)
    assert again.best == first.best
    assert len(again.rounds) == len(first.rounds)
    images = digits().test_images
    with torch.no_grad():
        assert torch.equal(again.model.eval()(images), first.model.eval()(images))


def test_fit_when_saved_then_the_folder_loads_with_the_dense_class(
    dense: nn.Module, tmp_path: Path
) -> None:
    made = quiet(dense, steps=10)
    loaded = secateur.load_pruned(made.save(tmp_path / "small"), net()).eval()
    with torch.no_grad():
        images = digits().test_images
        torch.testing.assert_close(loaded(images), made.model.eval()(images))


class Sum(nn.Module):
    """Takes two inputs, (n, 64) each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(a) + self.second(b)))


TRAINS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "pairs of a list": (net, {"train": list(loader())[:6]}),
    "a function": (net, {"train": lambda: iter(loader())}),
    "l1, repaired": (net, {"criterion": "l1", "repair": "least_squares", "rounds": 2}),
    "activations": (net, {"criterion": "activation"}),
    "channels": (net, {"of": "channels"}),
    "one round, no teacher": (net, {"rounds": 1, "weight": 0.0}),
    "an optimizer": (net, {"optimizer": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)}),
    "keyword arguments": (
        lambda: Labelled(net()),
        {"train": [{"pixels": x, "labels": y} for x, y in list(loader())[:6]]},
    ),
    "positional arguments": (
        lambda: Sum(),
        {"train": [((x.flatten(1), x.flatten(1)), y) for x, y in list(loader())[:6]]},
    ),
    "error curves": (net, {"criterion": "activation", "allocate": "error"}),
    "error curves, no criterion": (net, {"allocate": "error"}),
    "a loss": (
        net,
        {
            "train": [(x, y, y) for x, y in list(loader())[:6]],
            "loss": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
            "example_inputs": EXAMPLE,
        },
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else SLOW) for n in TRAINS]
)
def test_fit_when_batches_are_of_any_form_then_the_model_gets_smaller(name: str) -> None:
    build, settings = TRAINS[name]
    model = build()
    made = quiet(model, 0.5, **{"rounds": 2, "steps": 4, "evaluate": lambda model: 0.0} | settings)
    assert made.result.after.params < made.result.before.params
    assert made.result.verification.passed


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"minutes": 1, "steps": 3}, ConfigError, "minutes=… or steps=…"),
        ({"steps": 0}, ConfigError, "above 0"),
        ({"steps": 2.5}, ConfigError, "above 0"),
        ({"rounds": 0}, ConfigError, "rounds must be"),
        ({"schedule": "cubic"}, ConfigError, "'schedule' of its budget"),
        ({"every": 2}, ConfigError, "'every' of its budget"),
        ({"method": "movement"}, ConfigError, "use Pruner in your loop"),
        ({"sparsty": 0.5}, ConfigError, "Did you mean 'sparsity'"),
        ({"repair": "least_square"}, UnknownNameError, "Did you mean 'least_squares'"),
        ({"weight": 2.0}, ConfigError, "weight must be"),
        ({"evaluate": 3}, ConfigError, "evaluate must be a function"),
        ({"evaluate": lambda model: "good"}, ConfigError, "larger is better; got 'good'"),
        ({"evaluate": lambda model: float("nan")}, ConfigError, "larger is better"),
        ({"train": []}, ConfigError, "train: there are no batches"),
        ({"train": 3}, ConfigError, "train"),
        ({"train": [torch.zeros(2, 1, 8, 8)]}, ConfigError, "pair of inputs and labels"),
        ({"optimizer": lambda p: torch.optim.LBFGS(p)}, ConfigError, "returned LBFGS"),
        ({"optimizer": lambda p: None}, ConfigError, "returned NoneType"),
        ({"optimizer": "adam"}, ConfigError, "of the parameters that returns one, got a str"),
        ({"loss": 0.5}, ConfigError, "loss must be a function, got a float"),
        ({"loss": lambda model, batch: model(batch[0])}, ConfigError, "a scalar tensor, and"),
        ({"loss": lambda model, batch: 0.0}, ConfigError, "a scalar tensor, and returned 0.0"),
        ({"minutes": "5"}, ConfigError, "minutes='5'"),
        ({"minutes": True}, ConfigError, "minutes=True"),
        ({"folder": __file__}, ConfigError, "is a file"),
        ({"train": [{"x": torch.zeros(2, 1, 8, 8), "labels": 0}]}, ConfigError, "refuses it"),
        ({"rounds": 1, "optimizer": lambda p: torch.optim.SGD(p, 1e30)}, ConfigError, "lower rate"),
    ],
)
def test_fit_when_settings_cannot_work_then_says_what_would_and_the_model_is_as_before(
    settings: dict[str, Any], error: type[Exception], words: str, dense: nn.Module
) -> None:
    before = copy.deepcopy(dense.state_dict())
    given = {"steps": 12} if "minutes" not in settings else {}
    with pytest.raises(error) as caught:
        fit(
            dense,
            0.5,
            **{"train": loader(), "evaluate": right, "on_round": print} | given | settings,
        )
    assert words in str(caught.value)
    assert all(map(torch.equal, before.values(), dense.state_dict().values()))
    assert not dense._forward_hooks


def test_fit_when_a_folder_is_of_another_fit_then_says_what_differs(
    dense: nn.Module, tmp_path: Path
) -> None:
    quiet(dense, folder=tmp_path, steps=6)
    with pytest.raises(ConfigError, match="steps: 6 there, 7 here"):
        quiet(dense, folder=tmp_path, steps=7)
    with pytest.raises(ConfigError, match="other weights"):
        quiet(net(), folder=tmp_path, steps=6)
    file = tmp_path / "fit.safetensors"
    state = read_state(file)
    del state["rounds"]
    write_state(file, state)
    with pytest.raises(FileError, match="no state of a fit"):
        quiet(dense, folder=tmp_path, steps=6)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(FileError):
        quiet(dense, folder=tmp_path, steps=6)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "evaluate": ({"evaluate": lambda model: -right(model)}, "right there, <lambda> here"),
    "loss": ({"loss": lambda model, batch: model(batch[0]).square().mean()}, "none there"),
    "optimizer": ({"optimizer": lambda given: torch.optim.SGD(given, 0.1)}, "none there"),
}


def stopped(dense: nn.Module, folder: Path, **given: Any) -> None:
    """Let a fit be broken off after its second measurement."""
    seen = []

    def stop(made: Round) -> None:
        seen.append(made)
        if len(seen) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        quiet(dense, folder=folder, on_round=stop, **given)


@pytest.mark.parametrize("name", OTHERS)
def test_fit_when_it_goes_on_with_another_function_then_says_which(
    name: str, dense: nn.Module, tmp_path: Path
) -> None:
    stopped(dense, tmp_path)
    given, said = OTHERS[name]
    with pytest.raises(ConfigError, match=f"(?s)begun with another {name},.*{said}"):
        quiet(dense, folder=tmp_path, **given)
    if name == "optimizer":
        with pytest.raises(ConfigError, match=r"betas.* than this SGD"):
            quiet(dense, folder=tmp_path, same=[name], **given)
    else:
        assert len(quiet(dense, folder=tmp_path, same=[name], **given).rounds) > 2


@pytest.mark.parametrize("more", [0.0, 1.0])
def test_fit_when_it_goes_on_with_other_batches_then_warns(
    more: float, dense: nn.Module, tmp_path: Path
) -> None:
    stopped(dense, tmp_path)
    batches = [[x + more, y] for x, y in loader()]
    fitted = quiet(dense, folder=tmp_path, train=batches)
    assert (OTHER_BATCHES in fitted.result.warnings) == bool(more)


def test_stream_when_a_generator_is_used_up_then_says_what_to_give() -> None:
    stream = Stream(x for x in range(2))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ConfigError, match="used up"):
        next(stream)


def test_rate_when_time_passes_then_it_rises_and_falls_to_nothing() -> None:
    rates = [rate(k / 200) for k in range(201)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == 0
    assert rates[0] > 0


def test_deadline_when_runs_before_it_took_time_then_it_counts() -> None:
    deadline = Deadline(minutes=1)
    deadline.go_on(30.0)
    assert deadline.progress(0) == pytest.approx(0.5, abs=0.01)
    deadline.reserved = 20.0
    assert deadline.progress(0) == pytest.approx(0.75, abs=0.01)


def test_evaluate_when_it_changes_the_mode_then_training_goes_on_in_its_own(
    dense: nn.Module,
) -> None:
    def evaluate(model: nn.Module) -> Tensor:
        assert not model.training
        model.train()
        return torch.tensor(0.5)

    assert quiet(dense, evaluate=evaluate, steps=6).best == 0.5


def test_evaluate_when_it_fails_then_the_dense_model_is_in_its_mode(dense: nn.Module) -> None:
    model = copy.deepcopy(dense).train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]

    def failing(tried: nn.Module) -> float:
        raise OSError("no test set")

    with pytest.raises(OSError, match="no test set"):
        fit(model, 0.5, train=loader(), evaluate=failing, steps=4)
    assert [module.training for module in model.modules()] == modes


def test_fit_when_nothing_can_be_trained_then_config_error() -> None:
    with pytest.raises(ConfigError, match="requires a gradient"):
        quiet(net().requires_grad_(False), steps=4)


def test_fit_when_a_backbone_is_frozen_then_it_is_pruned_without_its_gradients() -> None:
    model = net()
    first, *_ = model.parameters()
    first.requires_grad_(False)
    made = quiet(model, steps=4, repair="none")
    assert made.result.after.macs < made.result.before.macs


class Predicts(nn.Module):
    """Returns a dict without logits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"prediction": self.net(x)}


def test_fit_when_outputs_have_no_logits_then_it_trains_without_a_teacher() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0])["prediction"], batch[1])

    how = {"loss": loss, "evaluate": lambda model: 0.5, "steps": 4}
    with pytest.raises(ConfigError, match="weight=0"):
        quiet(Predicts(), **how)
    made = quiet(Predicts(), weight=0, **how)
    assert made.result.after.macs < made.result.before.macs
    assert not made.model._forward_hooks


def test_fit_when_a_folder_holds_one_that_is_over_then_the_log_says_that_nothing_is_trained(
    dense: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quiet(dense, folder=tmp_path, steps=4)
    assert not caplog.text
    quiet(dense, folder=tmp_path, steps=4)
    assert "nothing is trained" in caplog.text


def test_fit_when_training_harms_then_what_the_repair_left_is_returned(dense: nn.Module) -> None:
    def wild(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    found = fit(
        dense,
        0.3,
        train=loader(),
        evaluate=right,
        steps=12,
        optimizer=wild,
        on_round=lambda _: None,
    )
    first = found.rounds[0]
    assert (first.step, first.number) == (0, first.of)
    assert found.best == first.value > max(each.value for each in found.rounds[1:])
    assert right(found.model) == first.value


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, "much", None])
def test_fit_when_what_judges_gives_no_number_then_config_error(value: Any) -> None:
    with pytest.raises(ConfigError, match="evaluate must return a number"):
        fit(net(), 0.3, train=loader(), evaluate=lambda _: value, steps=2)
