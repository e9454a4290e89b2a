"""Deep deterministic policy gradients: an agent that learns which share to remove from a layer.

An episode is one model: a state and an action for each layer, and one reward at its end.  All
that is drawn comes from the agent's own generator, so that the same episodes make the same agent.

Lillicrap et al., 2016, arXiv:1509.02971; He et al., 2018, arXiv:1802.03494
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ranges import check

State = Sequence[float]


@dataclass(frozen=True)
class Learning:
    """How the agent learns and explores.

    Attributes:
        hidden1, hidden2: widths of both networks.
        lr_c, lr_a: learning rates of the critic and the actor.
        discount: of later rewards.
        bsize: transitions of one update.
        rmsize: transitions that are remembered.
        tau: how fast the targets follow.
        init_delta: standard deviation of the exploration in the first episode after the warm-up.
        delta_decay: what each later episode multiplies it by.
        warmup: episodes whose actions are random.
        updates: of the networks for each transition of an episode.
        first_action: of the untrained actor; None leaves it to its random weights.
    """

    hidden1: int = 300
    hidden2: int = 300
    lr_c: float = 1e-3
    lr_a: float = 1e-4
    discount: float = 1.0
    bsize: int = 64
    rmsize: int = 100
    tau: float = 0.01
    init_delta: float = 0.5
    delta_decay: float = 0.99
    warmup: int = 100
    updates: int = 1
    first_action: float | None = None

    def __post_init__(self) -> None:
        first = () if self.first_action is None else ("first_action",)
        check(
            self,
            counts=("hidden1", "hidden2", "bsize", "rmsize", "updates"),
            from_zero=("warmup",),
            positive=("lr_c", "lr_a", "init_delta", "delta_decay"),
            shares=("tau",),
            closed=("discount", *first),
        )


@dataclass(frozen=True)
class Transition:
    """What was seen and done at one layer, and what came after; ``then`` is None at the end."""

    state: tuple[float, ...]
    action: float
    reward: float
    then: tuple[float, ...] | None


def episode(states: Sequence[State], actions: Sequence[float], reward: float) -> list[Transition]:
    """Return the transitions of one episode, whose reward belongs to all of them."""
    after = [*(tuple(state) for state in states[1:]), None]
    return [
        Transition(tuple(state), action, reward, then)
        for state, action, then in zip(states, actions, after, strict=True)
    ]


class Agent:
    """Actor and critic, their targets, and the memory they learn from.

    Args:
        width: numbers of a state.
        learning: how it learns.
        seed: of weights, exploration and what is remembered.

    >>> agent = Agent(3, Learning(warmup=1), seed=0)
    >>> 0 <= agent.action([0.0, 1.0, 0.5]) <= 1
    True
    >>> agent.learn(episode([[0.0] * 3, [1.0] * 3], [0.2, 0.4], reward=-0.5))
    >>> agent.episodes
    1
    """

    def __init__(self, width: int, learning: Learning, seed: int):
        self.learning = learning
        self.episodes = 0
        self._draws = torch.Generator().manual_seed(seed)
        first, second = learning.hidden1, learning.hidden2
        self.actor = _Actor(width, first, second)
        self.critic = _Critic(width, first, second)
        _initialise(self.actor, self._draws)
        _initialise(self.critic, self._draws)
        if learning.first_action is not None:
            _start_at(self.actor, learning.first_action)
        self._targets = _Actor(width, first, second), _Critic(width, first, second)
        for target, source in zip(self._targets, (self.actor, self.critic), strict=True):
            target.load_state_dict(source.state_dict())
        self._optimizers = (
            torch.optim.Adam(self.actor.parameters(), lr=learning.lr_a),
            torch.optim.Adam(self.critic.parameters(), lr=learning.lr_c),
        )
        self._memory: deque[Transition] = deque(maxlen=learning.rmsize)
        self._average: float | None = None

    @property
    def delta(self) -> float:
        """The standard deviation of the exploration in this episode."""
        learned = max(0, self.episodes - self.learning.warmup)
        return self.learning.init_delta * self.learning.delta_decay**learned

    @torch.no_grad()
    def action(self, state: State, *, explore: bool = True, seed: int | None = None) -> float:
        """Return the share for a state: random in the warm-up, then the actor's with noise.

        Args:
            state: of the layer.
            explore: False for the actor's own.
            seed: of the noise, instead of the agent's generator.
        """
        draws = self._draws if seed is None else torch.Generator().manual_seed(seed)
        mean = float(self.actor(torch.tensor([list(state)], dtype=torch.float32)))
        if not explore:
            return mean
        draw = float(torch.rand((), generator=draws, dtype=torch.float64))
        if self.episodes < self.learning.warmup and self.learning.first_action is None:
            return draw
        return truncated_normal(mean, self.delta, draw)

    def learn(self, transitions: Sequence[Transition]) -> None:
        """Remember an episode, and update the networks unless it is of the warm-up."""
        self.episodes += 1
        for transition in transitions:
            self._memory.append(transition)
            if self.episodes > self.learning.warmup:
                for _ in range(self.learning.updates):
                    self._update()

    def _update(self) -> None:
        batch = self._sample()
        states = torch.tensor([t.state for t in batch])
        actions = torch.tensor([[t.action] for t in batch], dtype=torch.float32)
        rewards = self._centred(torch.tensor([[t.reward] for t in batch], dtype=torch.float32))
        going_on = torch.tensor([[float(t.then is not None)] for t in batch])
        after = torch.tensor([t.state if t.then is None else t.then for t in batch])
        target_actor, target_critic = self._targets
        with torch.no_grad():
            later = target_critic(after, target_actor(after))
            goal = rewards + self.learning.discount * going_on * later
        actor_step, critic_step = self._optimizers
        critic_step.zero_grad()
        with torch.enable_grad():
            F.mse_loss(self.critic(states, actions), goal).backward()
        critic_step.step()
        actor_step.zero_grad()
        with torch.enable_grad():
            (-self.critic(states, self.actor(states)).mean()).backward()
        actor_step.step()
        for target, source in zip(self._targets, (self.actor, self.critic), strict=True):
            _follow(target, source, self.learning.tau)

    def _sample(self) -> list[Transition]:
        """Return a batch; with replacement where fewer are remembered."""
        known, wanted = len(self._memory), self.learning.bsize
        if known >= wanted:
            places = torch.randperm(known, generator=self._draws)[:wanted]
        else:
            places = torch.randint(known, (wanted,), generator=self._draws)
        return [self._memory[i] for i in places.tolist()]

    def _centred(self, rewards: Tensor) -> Tensor:
        """Subtract the moving average of the batches' mean rewards."""
        mean = float(rewards.mean())
        self._average = mean if self._average is None else self._average
        self._average += 0.5 * (mean - self._average)
        return rewards - self._average


def truncated_normal(mean: float, deviation: float, draw: float) -> float:
    """Return the quantile ``draw`` in [0, 1) of a normal distribution cut off at 0 and 1.

    >>> truncated_normal(0.5, 0.1, 0.5), truncated_normal(0.3, 0.0, 0.9)
    (0.5, 0.3)
    """
    mean = min(1.0, max(0.0, mean))
    if deviation <= 1e-6:
        return mean
    below, above = (_normal((edge - mean) / deviation) for edge in (0.0, 1.0))
    wanted = below + draw * (above - below)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if _normal((middle - mean) / deviation) < wanted:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 9)


def _normal(x: float) -> float:
    return (1 + erf(x / sqrt(2))) / 2


class _Actor(nn.Module):
    def __init__(self, width: int, first: int, second: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.ReLU(),
            nn.Linear(second, 1),
        )

    def forward(self, state: Tensor) -> Tensor:
        return torch.sigmoid(self.layers(state))


class _Critic(nn.Module):
    def __init__(self, width: int, first: int, second: int):
        super().__init__()
        self.of_state, self.of_action = nn.Linear(width, first), nn.Linear(1, first)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 1)
        )

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.layers(self.of_state(state) + self.of_action(action))


def _initialise(module: nn.Module, draws: torch.Generator) -> None:
    """Give linear layers torch's own first weights, from our generator."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-bound, bound, generator=draws)


def _start_at(actor: _Actor, action: float) -> None:
    """Let an untrained actor's actions be near one share."""
    last = actor.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.fill_(float(torch.logit(torch.tensor(action), eps=1e-3)))


@torch.no_grad()
def _follow(target: nn.Module, source: nn.Module, tau: float) -> None:
    for old, new in zip(target.parameters(), source.parameters(), strict=True):
        old.lerp_(new, tau)
