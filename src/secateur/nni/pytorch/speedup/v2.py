"""``ModelSpeedup`` at the place where NNI 2.10 has its newer one."""

from secateur.nni.speedup import ModelSpeedup as ModelSpeedup
