"""What makes the tasks of a ``PruningScheduler``, at NNI 2.x's place."""

from secateur.nni.pruning.iterative import AGPTaskGenerator as AGPTaskGenerator
from secateur.nni.pruning.iterative import AMCTaskGenerator as AMCTaskGenerator
from secateur.nni.pruning.iterative import AutoCompressTaskGenerator as AutoCompressTaskGenerator
from secateur.nni.pruning.iterative import LinearTaskGenerator as LinearTaskGenerator
from secateur.nni.pruning.iterative import LotteryTicketTaskGenerator as LotteryTicketTaskGenerator
from secateur.nni.pruning.iterative import (
    SimulatedAnnealingTaskGenerator as SimulatedAnnealingTaskGenerator,
)
from secateur.nni.pruning.iterative import TaskGenerator as TaskGenerator
