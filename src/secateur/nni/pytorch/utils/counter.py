"""``count_flops_params`` at NNI 2.x's place."""

from secateur.nni.utils.counter import count_flops_params as count_flops_params
