"""What scripts import from NNI 2.x's ``compression.pytorch.utils``."""

from secateur.nni.sparsity import (
    compute_sparsity_compact2origin as compute_sparsity_compact2origin,
)
from secateur.nni.sparsity import compute_sparsity_mask2compact as compute_sparsity_mask2compact
from secateur.nni.utils.counter import count_flops_params as count_flops_params
