"""NNI's pruning interface: replace ``nni.compression`` by ``secateur.nni``."""

from .evaluators import DeepspeedTorchEvaluator as DeepspeedTorchEvaluator
from .evaluators import LightningEvaluator as LightningEvaluator
from .evaluators import TorchEvaluator as TorchEvaluator
from .evaluators import TransformersEvaluator as TransformersEvaluator
from .tracing import trace as trace
