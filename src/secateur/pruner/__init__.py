"""A pruning run that your loop steps: ``Pruner``, and what it is made of."""

from .pruner import Pruner as Pruner
