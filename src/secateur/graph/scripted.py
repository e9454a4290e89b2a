"""Functions that TorchScript compiled: watched as the Python that they were made from.

Inside a compiled function sizes are plain numbers, so that ``sqrt(x.size(-1))`` would be a constant
to whoever watches, and the width it comes from free to be cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from secateur.runtime.alone import in_trial
from secateur.runtime.undo import Undo


@contextmanager
def scripts_as_python() -> Iterator[None]:
    """Within it, a function that ``torch.jit.script`` made runs its own source.

    One that was loaded from a file has none, and runs as it is.
    """
    kind: Any = torch.jit.ScriptFunction
    compiled = kind.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # kept for torch.compile, likewise
        source = getattr(self, "_torchdynamo_inline", None) if in_trial() else None
        return compiled(self, *args, **kwargs) if source is None else source(*args, **kwargs)

    with Undo() as undo:
        undo(partial(setattr, kind, "__call__", compiled))
        kind.__call__ = call
        yield
