"""NNI 2.10's pruners, with its constructors and its keys, where its scripts import them from.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
>>> pruner = L1NormPruner(model, [{"op_names": ["0"], "sparsity": 0.5}])
>>> _, masks = pruner.compress()
>>> int(masks["0"]["bias"].sum())
4
>>> pruner._unwrap_model()
"""

from secateur.nni.pruning.iterative import AGPPruner as AGPPruner
from secateur.nni.pruning.iterative import AMCPruner as AMCPruner
from secateur.nni.pruning.iterative import AutoCompressPruner as AutoCompressPruner
from secateur.nni.pruning.iterative import LinearPruner as LinearPruner
from secateur.nni.pruning.iterative import LotteryTicketPruner as LotteryTicketPruner
from secateur.nni.pruning.iterative import PruningScheduler as PruningScheduler
from secateur.nni.pruning.iterative import SimulatedAnnealingPruner as SimulatedAnnealingPruner
from secateur.nni.pruning.v2 import ActivationAPoZRankPruner as ActivationAPoZRankPruner
from secateur.nni.pruning.v2 import ActivationMeanRankPruner as ActivationMeanRankPruner
from secateur.nni.pruning.v2 import ActivationPruner as ActivationPruner
from secateur.nni.pruning.v2 import ADMMPruner as ADMMPruner
from secateur.nni.pruning.v2 import FPGMPruner as FPGMPruner
from secateur.nni.pruning.v2 import L1NormPruner as L1NormPruner
from secateur.nni.pruning.v2 import L2NormPruner as L2NormPruner
from secateur.nni.pruning.v2 import LevelPruner as LevelPruner
from secateur.nni.pruning.v2 import MovementPruner as MovementPruner
from secateur.nni.pruning.v2 import SlimPruner as SlimPruner
from secateur.nni.pruning.v2 import TaylorFOWeightPruner as TaylorFOWeightPruner
