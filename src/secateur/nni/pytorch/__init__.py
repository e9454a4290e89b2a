"""NNI 2.x's interface: replace ``nni.compression.pytorch`` by ``secateur.nni.pytorch``."""

from .evaluators import LightningEvaluator as LightningEvaluator
from .evaluators import TorchEvaluator as TorchEvaluator
from .evaluators import TransformersEvaluator as TransformersEvaluator
