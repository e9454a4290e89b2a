"""Learning from the dense model: its loss beside your own, whatever trains."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.runtime.batches import padding
from secateur.runtime.copying import copied
from secateur.runtime.undo import unhooked_with

from .hidden import Hidden, shown

Watcher: TypeAlias = "Callable[[Distillation, Any, Any, Any], None]"

WEIGHT, TEMPERATURE = 0.9, 4.0
"""Of the teacher in the loss, and of its outputs, where nobody says others."""


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    r"""Return :math:`T^2 \, KL(p_T \| q_T)` of softened distributions, the mean over positions.

    The factor keeps gradients on the scale of the task's loss, whatever the temperature.  A convex
    mix is usual: ``0.1 * task_loss + 0.9 * distillation_loss(model(x), dense(x))``.  The teacher
    gets no gradient; run it under ``torch.no_grad()`` to save its memory.

    Args:
        student: logits of the model that is pruned, ``(..., classes)``.
        teacher: logits of the dense model on the same inputs, of the same shape.
        temperature: T, above 0; larger ones tell more of the unlikely classes.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
    >>> distillation_loss(logits, logits)
    tensor(0.)

    Hinton et al., 2015, arXiv:1503.02531

    See also:
        ``Distillation``, which runs the teacher too.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    classes = student.shape[-1]
    q = F.log_softmax(student.reshape(-1, classes) / temperature, dim=1)
    p = F.log_softmax(teacher.detach().reshape(-1, classes) / temperature, dim=1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)


class Distillation:
    """A frozen teacher that sees what the model sees, and the mix of its loss with yours.

    Each forward of the model in training mode is repeated by the teacher, in eval mode and without
    gradients; calling this with your loss returns ``(1 - weight) * loss + weight *
    distillation_loss(model's logits, teacher's)`` of the forwards since the last call.  Positions
    that an ``attention_mask`` hides do not count.  Trainers' callbacks do all that for you.

    With ``hidden=["layer*"]`` layers of these names learn from the teacher's too: their outputs'
    relative squared error, the mean over layers, times ``hidden_weight``, is added to the teacher's
    loss.  Layers whose outputs have not the teacher's shape, since a cut took some, do not count.

    Args:
        model: what is trained; its output is the logits, or has them as ``logits``.
        teacher: "dense", a copy of the model as it is now, or another module of the same outputs.
        weight: of the teacher's loss, in [0, 1].
        temperature: see ``distillation_loss``.
        hidden: shell patterns over names of modules whose outputs are matched; none by default.
        hidden_weight: of their error, at least 0.

    Attributes:
        nbytes: the memory that the teacher's weights take.

    Raises:
        ConfigError: a setting is out of its range; when called: no forward was seen, an output has
            no logits, or no layer of ``hidden`` has outputs of the teacher's shape.

    >>> model, x = nn.Linear(4, 3), torch.ones(2, 4)
    >>> distillation = Distillation(model, weight=0.5)
    >>> loss = distillation(F.cross_entropy(model(x), torch.tensor([0, 2])))
    >>> loss.requires_grad, distillation.nbytes
    (True, 60)
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | Literal["dense"] = "dense",
        weight: float = WEIGHT,
        temperature: float = TEMPERATURE,
        hidden: Sequence[str] = (),
        hidden_weight: float = 1.0,
    ):
        if not 0 <= weight <= 1 or not 0 < temperature < float("inf"):
            raise ConfigError(
                f"weight must be in [0, 1] and temperature above 0, got {weight} and {temperature}"
            )
        if not 0 <= hidden_weight < float("inf"):
            raise ConfigError(f"hidden_weight must be a number from 0 on, got {hidden_weight}")
        if teacher != "dense" and not isinstance(teacher, nn.Module):
            raise ConfigError(f"teacher must be 'dense' or a module, got {teacher!r}")
        made = copied(model).requires_grad_(False) if teacher == "dense" else teacher
        assert isinstance(made, nn.Module)
        self.teacher, self.weight, self.temperature = made, weight, temperature
        self.nbytes = sum(t.nbytes for t in (*made.parameters(), *made.buffers()))
        self._pending: list[Tensor] = []
        self._hidden = Hidden(model, made, hidden) if hidden else None
        self._hidden_weight = hidden_weight
        self._model = weakref.ref(model)
        self._ends: list[Callable[[], object]] = []
        self.after_forward(_see)
        if self._hidden is not None:
            opener = _opener(model, self._hidden)
            self._ends.append(unhooked_with(self, model, opener))
            model.register_forward_pre_hook(opener)

    def __call__(self, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Return the mix of a loss that is multiplied by ``scale`` already; see the class."""
        return (1 - self.weight) * loss + self.weight * scale * self._taken()

    def add_to(self, loss: Tensor, scale: float = 1.0) -> None:
        """Turn a loss into the mix in place, for trainers that keep it; see ``__call__``."""
        loss.mul_(1 - self.weight).add_(self._taken().to(loss), alpha=self.weight * scale)

    def after_forward(self, function: Watcher) -> None:
        """Call a function after each forward of the model, until this is closed or dropped.

        Args:
            function: of this, the forward's positional and keyword arguments, and its output.
        """
        model = self._model()
        if model is None:
            return
        hook = _hook(model, self, function)
        self._ends.append(unhooked_with(self, model, hook))
        model.register_forward_hook(hook, with_kwargs=True)

    @property
    def waits(self) -> bool:
        """Whether a forward was seen that no loss was mixed with since."""
        return bool(self._pending)

    def digest(self) -> str:
        """Return a digest of the teacher's weights, to know it again."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.teacher.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    def check(self, digest: str) -> None:
        """Raise a ConfigError if the teacher is another than the one of that digest."""
        if digest != self.digest():
            raise ConfigError(
                "the teacher has other weights than in the run that goes on: load the dense "
                "model's weights before this is made, or give teacher=… the dense model"
            )

    def close(self) -> None:
        """Watch the model no longer, and forget what was seen."""
        for end in self._ends:
            end()
        if self._hidden is not None:
            self._hidden.close()
        self.forget()

    def forget(self) -> None:
        """Forget the forwards that no loss was mixed with, as a training leaves that is stopped."""
        self._pending.clear()

    @property
    def matched(self) -> tuple[str, ...]:
        """The layers of ``hidden`` whose outputs had the teacher's shape in the last forward."""
        return () if self._hidden is None else self._hidden.matched or ()

    def _taken(self) -> Tensor:
        if not self._pending:
            raise ConfigError(
                "distillation: the model ran no forward in training mode since the last loss; a "
                "part of it did, perhaps: make the Pruner (or Distillation) of that part"
            )
        total = torch.stack(self._pending).mean()
        self._pending.clear()
        return total

    def _see(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._hidden is not None:
            self._hidden.watch(0, False)  # what a checkpoint computes again comes later
        pair = logits_of(output), logits_of(self._told(args, kwargs))
        if pair[0].shape != pair[1].shape:
            shapes = " and ".join(str(tuple(logits.shape)) for logits in pair)
            raise ConfigError(f"distillation: model and teacher differ in their logits: {shapes}")
        inputs = (*args, kwargs)
        spoken = padding(self.teacher, inputs, of_outputs=True)
        where = shown(spoken, pair[0].shape) if pair[0].ndim > 2 else None
        if where is not None:  # of text: padding teaches nothing
            pair = pair[0][where], pair[1][where]
        found = distillation_loss(*pair, self.temperature)
        if self._hidden is not None:
            found = found + self._hidden_weight * self._hidden.loss(
                padding(self.teacher, inputs)
            ).to(found)
        self._pending.append(found)

    def _told(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the teacher makes of the same inputs, in eval mode."""
        training = [module for module in self.teacher.modules() if module.training]
        if training:
            self.teacher.eval()
        if self._hidden is not None:
            self._hidden.watch(1, True)
        try:
            with torch.no_grad():
                return self.teacher(*args, **kwargs)
        finally:
            if self._hidden is not None:
                self._hidden.watch(1, False)
            for module in training:
                module.training = True


def taught(
    model: nn.Module,
    teacher: nn.Module | Literal["dense"] | None,
    weight: float,
    temperature: float,
    hidden: Sequence[str] = (),
) -> Distillation | None:
    """Return a ``Distillation``, or None where there is to be no teacher.

    Raises:
        ConfigError: a setting is wrong, or there is one of a teacher and none.
    """
    if teacher is None and (weight, temperature, tuple(hidden)) != (WEIGHT, TEMPERATURE, ()):
        raise ConfigError(
            "weight, temperature and hidden are of a teacher, and there is none: give "
            "teacher='dense', or a module"
        )
    return None if teacher is None else Distillation(model, teacher, weight, temperature, hidden)


def logits_of(output: Any) -> Tensor:
    """Return the logits of an output.

    Raises:
        ConfigError: it is no tensor, and has none named ``logits``.

    >>> logits_of({"loss": 1.0, "logits": torch.zeros(1, 2)})
    tensor([[0., 0.]])
    """
    found = output.get("logits") if isinstance(output, Mapping) else output
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"distillation needs logits: the output is a {type(output).__name__}, neither a tensor "
            "nor anything with logits. weight=0 of fit() trains without a teacher"
        )
    return found


def at_least_float32(logits: Tensor) -> Tensor:
    """Return logits, those of half precision in float32: sums over classes lose too much in it.

    >>> at_least_float32(torch.ones(1).bfloat16()).dtype
    torch.float32
    """
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _see(told: Distillation, args: Any, kwargs: Any, output: Any) -> None:
    model = told._model()
    if model is not None and model.training and torch.is_grad_enabled():
        told._see(args, kwargs, output)


def _hook(model: nn.Module, distillation: Distillation, function: Watcher) -> Any:
    """Return a forward hook: a function, which a deep copy of the model does not copy with it."""
    watched, to = weakref.ref(model), weakref.ref(distillation)

    def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        told = to()
        if told is not None and module is watched():
            function(told, args, kwargs, output)

    return watch


def _opener(model: nn.Module, hidden: Hidden) -> Any:
    """Return a forward pre-hook that lets the layers of a model be seen in this forward."""
    watched, to = weakref.ref(model), weakref.ref(hidden)

    def begin(module: nn.Module, args: Any) -> None:
        hears = to()
        if hears is not None and module is watched():
            hears.watch(0, module.training and torch.is_grad_enabled())

    return begin
