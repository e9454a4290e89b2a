"""NNI's pruners: its constructors, methods and masks, on secateur's own pruner.

Migrating is replacing ``nni.compression`` by ``secateur.nni``:

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
>>> pruner = L1NormPruner(model, [{"op_names": ["0"], "sparse_ratio": 0.5}])
>>> _, masks = pruner.compress()
>>> masks["0"]["weight"].sum((1, 2, 3)).count_nonzero().item(), masks["0"]["bias"].sum().item()
(4, 4.0)
>>> model = pruner.unwrap_model()
"""

from .basic import FPGMPruner as FPGMPruner
from .basic import L1NormPruner as L1NormPruner
from .basic import L2NormPruner as L2NormPruner
from .basic import LevelPruner as LevelPruner
from .iterative import AMCPruner as AMCPruner
from .iterative import AutoCompressPruner as AutoCompressPruner
from .iterative import LotteryTicketPruner as LotteryTicketPruner
from .iterative import SimulatedAnnealingPruner as SimulatedAnnealingPruner
from .pruner import Pruner as Pruner
from .scheduled import AGPPruner as AGPPruner
from .scheduled import LinearPruner as LinearPruner
from .training import MovementPruner as MovementPruner
from .training import SlimPruner as SlimPruner
from .training import TaylorPruner as TaylorPruner
from .v2 import ActivationAPoZRankPruner as ActivationAPoZRankPruner
from .v2 import ActivationMeanRankPruner as ActivationMeanRankPruner
from .v2 import ADMMPruner as ADMMPruner
