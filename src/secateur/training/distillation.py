"""Learning from the dense model: a loss to add to your own while a model is pruned."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
    """
    classes = student.shape[-1]
    q = F.log_softmax(student.reshape(-1, classes) / temperature, dim=1)
    p = F.log_softmax(teacher.detach().reshape(-1, classes) / temperature, dim=1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
