"""``ModelSpeedup`` at NNI 2.x's place."""

from secateur.nni.speedup import ModelSpeedup as ModelSpeedup
