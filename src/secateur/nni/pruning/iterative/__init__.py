"""NNI 2.x's pruners that work in tasks: each prunes a copy of the model."""

from .amc import AMCPruner as AMCPruner
from .amc import AMCTaskGenerator as AMCTaskGenerator
from .annealing import SimulatedAnnealingPruner as SimulatedAnnealingPruner
from .annealing import SimulatedAnnealingTaskGenerator as SimulatedAnnealingTaskGenerator
from .auto_compress import AutoCompressPruner as AutoCompressPruner
from .auto_compress import AutoCompressTaskGenerator as AutoCompressTaskGenerator
from .generators import AGPTaskGenerator as AGPTaskGenerator
from .generators import LinearTaskGenerator as LinearTaskGenerator
from .generators import LotteryTicketTaskGenerator as LotteryTicketTaskGenerator
from .pruners import AGPPruner as AGPPruner
from .pruners import IterativePruner as IterativePruner
from .pruners import LinearPruner as LinearPruner
from .pruners import LotteryTicketPruner as LotteryTicketPruner
from .scheduler import PruningScheduler as PruningScheduler
from .task import Task as Task
from .task import TaskGenerator as TaskGenerator
