"""NNI's ``trace``, which scripts call and nothing here needs."""

from __future__ import annotations

from typing import Any


def trace(cls_or_func: Any = None, **options: Any) -> Any:
    """Return a class, function or instance as it is, also where it is used as a decorator.

    NNI wraps classes so that its evaluators can build their instances again.  Here live trainers
    and optimizers work as they are.

    >>> trace(dict)(a=1)
    {'a': 1}
    >>> @trace(kw_only=False)
    ... class Traced: pass
    >>> Traced.__name__
    'Traced'
    """
    return (lambda wrapped: wrapped) if cls_or_func is None else cls_or_func
