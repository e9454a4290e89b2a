"""NNI's evaluators: what trains the model while a pruner watches.  One file for each trainer.

An evaluator drives the user's own trainer through its public hooks.  Nothing is wrapped, traced or
patched: a trainer, an optimizer, a loop that was built as ever works as it is.
"""

from .deepspeed import DeepspeedTorchEvaluator as DeepspeedTorchEvaluator
from .evaluator import Evaluator as Evaluator
from .legacy import LegacyEvaluator as LegacyEvaluator
from .lightning import LightningEvaluator as LightningEvaluator
from .torch import TorchEvaluator as TorchEvaluator
from .transformers import TransformersEvaluator as TransformersEvaluator
