"""NNI 2.x's pruners of one shot: its constructors and its keys, on the pruners of 3.0.

``secateur.nni.pytorch.pruning`` is where scripts of NNI 2.x find them.
"""

from .activations import ActivationAPoZRankPruner as ActivationAPoZRankPruner
from .activations import ActivationMeanRankPruner as ActivationMeanRankPruner
from .activations import ActivationPruner as ActivationPruner
from .admm import ADMMPruner as ADMMPruner
from .basic import FPGMPruner as FPGMPruner
from .basic import L1NormPruner as L1NormPruner
from .basic import L2NormPruner as L2NormPruner
from .basic import LevelPruner as LevelPruner
from .pruner import OneShotPruner as OneShotPruner
from .training import MovementPruner as MovementPruner
from .training import SlimPruner as SlimPruner
from .training import TaylorFOWeightPruner as TaylorFOWeightPruner
