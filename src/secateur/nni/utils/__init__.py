"""What scripts import from NNI's ``utils``; each thing has a place of its own here."""

from secateur.nni.absent import missing
from secateur.nni.dependencies import (
    auto_set_denpendency_group_ids as auto_set_denpendency_group_ids,
)
from secateur.nni.dependencies import auto_set_dependency_group_ids as auto_set_dependency_group_ids
from secateur.nni.evaluators import DeepspeedTorchEvaluator as DeepspeedTorchEvaluator
from secateur.nni.evaluators import Evaluator as Evaluator
from secateur.nni.evaluators import LightningEvaluator as LightningEvaluator
from secateur.nni.evaluators import TorchEvaluator as TorchEvaluator
from secateur.nni.evaluators import TransformersEvaluator as TransformersEvaluator
from secateur.nni.sparsity import (
    compute_sparsity_compact2origin as compute_sparsity_compact2origin,
)
from secateur.nni.sparsity import compute_sparsity_mask2compact as compute_sparsity_mask2compact

__getattr__ = missing("utils")
