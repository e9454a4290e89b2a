"""Where NNI's quantisers would be: a name from here is an error that says what to do instead."""

from .absent import missing

__getattr__ = missing("quantization")
