"""Where NNI's quantised engines would be: a name from here is an error that says what to do."""

from .absent import missing

__getattr__ = missing("quantization_speedup")
