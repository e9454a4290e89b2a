"""NNI's name for a learning-rate scheduler, which scripts annotate with."""

from torch.optim.lr_scheduler import LRScheduler as SCHEDULER

__all__ = ["SCHEDULER"]
