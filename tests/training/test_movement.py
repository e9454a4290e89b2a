"""Movement pruning: what any correct implementation satisfies, each as closed form against run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Config, Pruner, distillation_loss, schedules
from secateur.errors import ConfigError
from secateur.masks import masking
from secateur.masks.classes import mask_of
from secateur.scoring.granularity import Tile

EXAMPLE = torch.zeros(2, 6, dtype=torch.float64)
STILL = 1e-30
"""A learning rate that moves no weight: at 0 the scores, whose rate follows, would not learn."""
ELEMENT = {"granularity": "element", "types": ["Linear"]}


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    return x, (x[:, :2].sum(1) > 0).long()


def loss(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return F.cross_entropy(model(x), y)


def movement(model: nn.Module, **settings: Any) -> Pruner:
    options = {"optimizer": "sgd", "score_lr": 1.0, **settings.pop("options", {})}
    config = {"method": "movement", "method_options": options, "sparsity": 0.5, **settings}
    if "threshold" in config:
        del config["sparsity"]
    return Pruner(model, Config(**config), EXAMPLE)


def scores(pruner: Pruner) -> dict[str, Tensor]:
    return {n: s.clone() for n, s in pruner.method.state_dict()["scores"].items()}


def train(
    model: nn.Module,
    pruner: Pruner,
    steps: int,
    each: Callable[[int], object] = lambda step: None,
    lr: float = 0.1,
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
        pruner.step()
        each(step)


def gradient_of_masked(model: nn.Module, name: str, step: int) -> Tensor:
    """``dL / d(W * M)``: of a model whose weight is the masked one."""
    masks = masking.masks_on(model)
    twin = net()
    with torch.no_grad():
        for key, parameter in twin.named_parameters():
            parameter.copy_(dict(model.named_parameters())[key] * masks.get(key, 1))
    loss(twin, step).backward()
    gradient = twin.get_parameter(name).grad
    assert gradient is not None
    return gradient


@pytest.fixture
def model() -> nn.Module:
    return net()


@pytest.fixture
def half(model: nn.Module) -> Pruner:
    """A pruner that has masked half of the weights of ``model``, one by one."""
    pruner = movement(model, **ELEMENT)
    train(model, pruner, 2)
    assert all(int((~m).sum()) >= m.numel() // 2 for m in pruner.masks.values() if m.ndim == 2)
    return pruner


# 1, 2: gradients


def test_backward_when_masked_then_the_scores_gradient_is_that_of_the_masked_weight_times_it(
    model, half
):
    before = scores(half)
    loss(model, 7).backward()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    expected = {n: gradient_of_masked(model, n, 7) * weights[n] for n in before}
    half.method.step(learning_rate_share=1.0, loss_scale=1.0)
    for name, score in scores(half).items():
        found = (before[name] - score).reshape(weights[name].shape)
        torch.testing.assert_close(found, expected[name])
        assert (expected[name][~half.masks[name]] != 0).any(), "masked weights get a gradient too"


def test_backward_when_masked_then_the_weights_gradient_is_masked(model, half):
    model.zero_grad()
    loss(model, 7).backward()
    for name, parameter in model.named_parameters():
        if name in half.masks:
            masked = gradient_of_masked(model, name, 7) * half.masks[name]
            assert torch.equal(parameter.grad, masked), name


# 3: blocks


@pytest.mark.parametrize("sizes", [[2, 3], [4, -1], [3, 4]])
def test_step_when_scores_are_of_blocks_then_their_gradient_is_the_sum_over_the_block(model, sizes):
    pruner = movement(model, granularity=sizes, names=["0"], start=9)
    gradient = gradient_of_masked(model, "0.weight", 0) * model[0].weight
    train(model, pruner, 1, lr=STILL)
    expected = -Tile(tuple(sizes)).rows(gradient).sum(1)
    torch.testing.assert_close(scores(pruner)["0.weight"], expected)


def test_step_when_blocks_are_of_one_weight_then_it_is_as_for_single_weights():
    found = []
    for granularity in ("element", [1, 1]):
        model = net()
        pruner = movement(model, granularity=granularity, types=["Linear"], steps=3)
        train(model, pruner, 6)
        found.append((scores(pruner), pruner.masks))
    for first, second in zip(*found, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_masks_when_of_blocks_then_each_block_is_whole(model):
    pruner = movement(model, granularity=[2, 2], types=["Linear"], steps=3)
    train(model, pruner, 4)
    for name in ("0.weight", "2.weight"):
        mask = pruner.masks[name]
        whole = Tile((2, 2)).rows(mask).all(1)
        assert torch.equal(Tile((2, 2)).expand(whole, mask.shape), mask)
        assert not whole.all()


def test_step_when_scores_are_of_a_group_then_their_gradient_is_summed_over_its_slices(model):
    pruner = movement(model, start=9)
    products = {
        n: gradient_of_masked(model, n, 0) * p.detach() for n, p in model.named_parameters()
    }
    train(model, pruner, 1, lr=STILL)
    expected = products["0.weight"].sum(1) + products["0.bias"] + products["2.weight"].sum(0)
    torch.testing.assert_close(scores(pruner)["0"], -expected)


# 4: the sum over steps


@pytest.mark.parametrize("settings", [ELEMENT, {}], ids=["weights", "groups"])
def test_init_when_there_is_a_prior_then_scores_start_from_the_criterions(model, settings):
    plain = Pruner(net(), Config(criterion="l1", sparsity=0.5, **settings), EXAMPLE)
    known = plain.scores(plain.tensors(), {})
    pruner = movement(model, criterion="l1", options={"prior": 3.0}, **settings)
    for each, expected in zip(pruner.selectables, known, strict=True):
        found = scores(pruner)[each.name]
        torch.testing.assert_close(found, 3 * (expected / expected.mean()).to(found))


def test_init_when_a_prior_needs_data_then_says_so_and_no_mask_is_on(model):
    with pytest.raises(ConfigError, match="gradients"):
        movement(model, criterion="taylor", options={"prior": 1.0})
    assert not masking.is_masked(model)


def test_step_when_scores_learn_by_sgd_then_they_are_the_sum_of_gradients_times_weights(model):
    pruner = movement(model, **ELEMENT, start=99, options={"score_lr": 0.3})
    sums = {name: torch.zeros(s.shape, dtype=s.dtype) for name, s in scores(pruner).items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(5):
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.zero_grad()
        loss(model, step).backward()
        for name in sums:
            gradient = (dict(model.named_parameters())[name].grad * weights[name]).reshape(-1)
            sums[name].add_(gradient, alpha=-0.3)
        optimizer.step()
        pruner.step()
    assert all(torch.equal(scores(pruner)[name], sums[name]) for name in sums)


# 5: hard


@pytest.mark.parametrize("scope", ["local", "global"])
def test_step_when_hard_then_the_count_follows_the_schedule_and_masks_may_change_after_it(
    model, scope
):
    pruner = movement(model, **ELEMENT, scope=scope, start=3, steps=6, sparsity=0.6)
    sizes = [48, 32] if scope == "local" else [80]
    counts, after = [], []

    def count(step: int) -> None:
        gone = [
            int((~pruner.masks[n]).sum()) if pruner.masks else 0 for n in ("0.weight", "2.weight")
        ]
        counts.append(gone if scope == "local" else [sum(gone)])
        if step >= 8:
            after.append(torch.cat([m.reshape(-1) for m in pruner.masks.values()]))

    train(model, pruner, 14, count)
    shares = [0.0] * 3 + [schedules["cubic"](k / 6) for k in range(1, 7)] + [1.0] * 5
    assert counts == [[int(n * 0.6 * share + 1e-9) for n in sizes] for share in shares]
    assert any(not torch.equal(after[0], mask) for mask in after)


def test_step_when_scores_are_equal_then_the_first_go(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    pruner = movement(model, **ELEMENT)
    train(model, pruner, 1)
    assert torch.equal(pruner.masks["0.weight"].reshape(-1), torch.arange(48) >= 24)


# 6, 7: soft


def test_step_when_soft_then_what_reaches_the_threshold_is_kept(model):
    pruner = movement(
        model, **ELEMENT, threshold=0.45, steps=5, options={"strength": 4.0, "score_lr": 3.0}
    )

    def check(step: int) -> None:
        for name, score in scores(pruner).items():
            expected = score.sigmoid() >= 0.45 * pruner.share
            assert torch.equal(pruner.masks[name].reshape(-1), expected), (step, name)

    train(model, pruner, 12, check)
    assert 0.0 < pruner.metrics()["sparsity"] < 0.99


def test_step_when_soft_and_there_is_no_penalty_then_nothing_goes_while_scores_are_high(model):
    pruner = movement(
        model, **ELEMENT, threshold=0.1, steps=3, options={"strength": 0.0, "score_lr": 0.1}
    )
    train(model, pruner, 6)
    assert all((score > log(0.1 / 0.9)).all() for score in scores(pruner).values())
    assert pruner.metrics()["sparsity"] == 0.0


def test_step_when_soft_then_more_strength_removes_more():
    found = []
    for strength in (0.0, 20.0, 60.0, 400.0):
        model = net()
        options = {"strength": strength, "score_lr": 1.0}
        pruner = movement(model, **ELEMENT, threshold=0.45, steps=4, options=options)
        train(model, pruner, 10)
        found.append(pruner.metrics()["sparsity"])
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_step_when_everything_should_go_then_the_least_share_stays(model):
    options = {"strength": 1e4, "score_lr": 5.0, "min_kept": 0.1}
    pruner = movement(model, **ELEMENT, threshold=0.5, options=options)
    train(model, pruner, 6)
    assert int(pruner.masks["0.weight"].sum()) == 5
    assert int(pruner.masks["2.weight"].sum()) == 4


@pytest.mark.parametrize("calls", [1, 3, 6])
def test_step_when_soft_then_the_penalty_is_the_mean_over_tensors_of_mean_sigmoids(model, calls):
    settings = {**ELEMENT, "threshold": 0.2, "start": 2, "steps": 3}
    plain = movement(net(), **settings, options={"strength": 0.0})
    pruner = movement(model, **settings, options={"strength": 3.0})
    for each in (plain, pruner):
        train(each.model, each, calls - 1, lr=STILL)
    pruner.method.load_state_dict(plain.method.state_dict())
    masking.put_on(model, masking.masks_on(plain.model), differentiable=True)
    leaves = {n: s.clone().requires_grad_() for n, s in scores(plain).items()}
    value = torch.stack([s.sigmoid().mean() for s in leaves.values()]).mean()
    share = pruner.share
    (3.0 * share * value).backward()
    for each in (plain, pruner):
        optimizer = torch.optim.SGD(each.model.parameters(), STILL)
        loss(each.model, 50).backward()
        optimizer.step()
        each.method.step(learning_rate_share=1.0, loss_scale=1.0)
    assert share == (0.0 if calls <= 2 else schedules["cubic"](min(1.0, (calls - 3) / 3)))
    for name, leaf in leaves.items():
        torch.testing.assert_close(scores(plain)[name] - scores(pruner)[name], leaf.grad)


# 8: accumulation and loss scale


def test_step_when_gradients_are_accumulated_then_as_with_one_large_batch():
    found = []
    for parts in (1, 4):
        model = net()
        pruner = movement(model, **ELEMENT, steps=4)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(6):
            optimizer.zero_grad()
            x, y = batch(step)
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (F.cross_entropy(model(a), b) / parts).backward()
            optimizer.step()
            pruner.step()
        found.append((scores(pruner), pruner.masks))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], mask) for name, mask in found[1][1].items())


def test_step_when_the_loss_is_scaled_then_scores_are_the_same_and_skipped_steps_are_left_out():
    found = []
    for scale in (None, 1024.0):
        model = net()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        config = Config(method="movement", sparsity=0.5, steps=4, **ELEMENT)
        pruner = Pruner(model, config, EXAMPLE, scaler=scaler)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(6):
            optimizer.zero_grad()
            value = loss(model, step)
            if step == 3:
                value = value * float("inf")  # what an overflow does to every gradient
            scaler.scale(value).backward()
            if scale is None and step == 3:
                pruner.step()  # a loop that sees it by itself skips the optimizer
                continue
            scaler.step(optimizer)
            scaler.update()
            pruner.step()
        found.append((scores(pruner), pruner.masks))
    assert all(torch.equal(found[0][0][name], score) for name, score in found[1][0].items())
    assert all(torch.equal(found[0][1][name], mask) for name, mask in found[1][1].items())


# 9: scores are nobody else's


def test_scores_are_not_among_the_models_tensors_nor_in_its_gradients_norm(model):
    names = [name for name, _ in model.named_parameters()]
    keys = list(model.state_dict())
    pruner = movement(model, **ELEMENT, start=5)
    train(model, pruner, 2)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == keys
    assert list(model.named_buffers()) == []
    twin = net()
    twin.load_state_dict(model.state_dict())
    model.zero_grad()
    for each in (model, twin):
        loss(each, 9).backward()
    norms = [nn.utils.clip_grad_norm_(each.parameters(), 1e9) for each in (model, twin)]
    assert torch.equal(*norms)


@pytest.mark.parametrize("initial", [True, False])
def test_step_when_the_learning_rate_decays_then_that_of_the_scores_does(model, initial):
    pruner = movement(model, **ELEMENT, start=99, options={"score_lr": 0.5})
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    if initial:
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: [0.5, 1.0, 0.25][t])
    found = []
    for step in range(3):
        if not initial:
            optimizer.param_groups[0]["lr"] = [0.1, 0.1, 0.025][step]
        before = scores(pruner)["0.weight"]
        optimizer.zero_grad()
        loss(model, step).backward()
        gradient = mask_of(model[0], "weight").grad.reshape(-1)
        optimizer.step()
        pruner.step()
        found.append((scores(pruner)["0.weight"] - before) / -gradient)
        if initial and step < 2:
            rates.step()
    expected = [0.25, 0.5, 0.125] if initial else [0.5, 0.5, 0.125]
    for ratio, rate in zip(found, expected, strict=True):
        torch.testing.assert_close(ratio, torch.full_like(ratio, rate))


# 10: in the end


def test_finish_when_rows_are_masked_whole_then_their_biases_are_zero_and_outputs_the_same(model):
    with torch.no_grad():
        model[0].weight[3] *= 1e-3
    pruner = movement(model, **ELEMENT, sparsity=0.9, steps=2)
    train(model, pruner, 4)
    dead = ~pruner.masks["0.weight"].any(1)
    assert dead.any()
    assert torch.equal(~pruner.masks["0.bias"], dead)
    x, _ = batch(20)
    expected = model(x)
    result = pruner.finish()
    torch.testing.assert_close(result.model(x), expected)
    assert type(model[0]) is nn.Linear


# 11: distillation


def test_distillation_loss_when_given_logits_then_it_is_the_scaled_divergence():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    for t in (1.0, 2.0, 7.0):
        p, q = (teacher / t).softmax(1), (student / t).softmax(1)
        expected = t * t * (p * (p / q).log()).sum(1).mean()
        torch.testing.assert_close(distillation_loss(student, teacher, t), expected)
    distillation_loss(student, teacher).backward()
    assert teacher.grad is None
    assert (student.grad != 0).any()


# 13: what it works with


def test_step_when_a_part_of_the_model_is_frozen_then_it_is_left_alone(model):
    model[0].requires_grad_(False)
    before = copy.deepcopy(model[0].state_dict())
    pruner = movement(model, **ELEMENT, exclude=["0"], steps=2)
    train(model, pruner, 4)
    assert all(torch.equal(value, before[name]) for name, value in model[0].state_dict().items())
    assert int((~pruner.masks["2.weight"]).sum()) == 16


def test_step_when_weights_are_tied_then_they_have_one_score_and_one_mask():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    model = Tied().double()
    pruner = movement(model, **ELEMENT, options={"score_lr": 1.0})
    assert list(scores(pruner)) == ["a.weight"]
    twin = copy.deepcopy(model)
    train(model, pruner, 1, lr=STILL)
    masking.take_off(twin, bake=False)
    loss(twin, 0).backward()
    expected = -(twin.a.weight.grad * twin.a.weight).reshape(-1)
    torch.testing.assert_close(scores(pruner)["a.weight"], expected)
    assert torch.equal(masking.masks_on(model)["b.weight"], pruner.masks["a.weight"])


def test_step_when_compiled_then_as_without():
    found = []
    for compiled in (False, True):
        model = net()
        pruner = movement(model, **ELEMENT, steps=3)
        torch._dynamo.reset()
        trained = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(4):
            optimizer.zero_grad()
            loss(trained, step).backward()
            optimizer.step()
            pruner.step()
        found.append((scores(pruner), pruner.masks))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], mask) for name, mask in found[1][1].items())
