"""NNI's pruning interface: replace ``nni.compression`` by ``secateur.nni``."""
