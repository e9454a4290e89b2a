"""Training batches without end, from anything that gives some; where it was can be gone back to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from secateur.errors import ConfigError
from secateur.runtime.digests import digest_of
from secateur.runtime.no_batch import check_iterable

from .options import Train

LABELS = ("labels", "label", "label_ids")
"""Names under which a batch of keyword arguments has its labels."""
OTHER_BATCHES = (
    "the fit went on with other batches of train= than before, or in another order: its "
    "values are comparable, and it was trained on both"
)


class Stream:
    """Batches of an iterable (or of what a function returns), again from its start at its end.

    >>> stream = Stream([1, 2])
    >>> [next(stream) for _ in range(5)]
    [1, 2, 1, 2, 1]
    """

    def __init__(self, train: Train, state: Mapping[str, Any] | None = None):
        if not callable(train):
            check_iterable(train, "train")
        self._train = train
        self._first: str | None = None
        self._start(None if state is None else state["random"])
        for _ in range(0 if state is None else int(state["taken"])):
            next(self)
        before = None if state is None else state.get("first")
        self.other = before is not None and before != self._first
        """Whether the batches are others than those that the state is of, or in another order."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            batch = next(self._batches)
        except StopIteration:
            if not self._taken:
                raise ConfigError(
                    "train: there are no batches in it, or it is used up: it is read again and "
                    "again; give a list, a loader, or a function that returns a generator"
                ) from None
            self._start(None)
            return next(self)
        if not self._taken:
            self._first = digest_of(batch)
        self._taken += 1
        return batch

    def state(self) -> dict[str, Any]:
        """Return where it is: how this pass began, and batches since."""
        return {"random": self._random.clone(), "taken": self._taken, "first": self._first}

    def _start(self, random: torch.Tensor | None) -> None:
        if random is not None:
            torch.set_rng_state(random)
        self._random, self._taken = torch.get_rng_state(), 0
        self._first = None
        made = self._train() if callable(self._train) else self._train
        self._batches: Iterator[Any] = iter(made)


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch: the first of a pair, or keyword arguments without labels.

    Raises:
        ConfigError: it is neither.

    >>> inputs_of((1, 2)), inputs_of({"x": 1, "labels": 2})
    (1, {'x': 1})
    """
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name not in LABELS}
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0]
    raise ConfigError(
        f"train: a batch must be a pair of inputs and labels, or a dict of keyword arguments, got "
        f"a {type(batch).__name__}: give loss=…, example_inputs=… and repair='none' for others"
    )


def few(inputs: Any) -> Any:
    """Return the first two samples of inputs."""
    if isinstance(inputs, torch.Tensor):
        return inputs[:2]
    if isinstance(inputs, Mapping):
        return {name: few(value) for name, value in inputs.items()}
    return tuple(map(few, inputs)) if isinstance(inputs, (tuple, list)) else inputs
