"""Models that are larger than memory: pruned block by block, from files to files.

A block comes from the shards of a checkpoint and goes back smaller; between blocks there are only
streams of activations, which are files too.
"""

from .options import Options
from .run import prune_checkpoint

__all__ = ["Options", "prune_checkpoint"]
