"""Give back to the system what the C library keeps of memory that was freed.

glibc keeps freed blocks of up to 32 MiB for later, and they rarely fit what comes next: the smaller
copies of a cut would come on top of the tensors that they replace.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

LARGE = 2**20  # bytes: less is not worth a walk over what is free


@cache
def _trim() -> Any:
    """Return glibc's ``malloc_trim``, or None where the C library is another."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # no process to look into, as on Windows
        return None


def release(freed: int = LARGE) -> None:
    """Give back what is free, if the caller has just freed enough for that to be worth it.

    Args:
        freed: bytes in the memory of the CPU.

    >>> release()
    """
    trim = _trim()
    if trim is not None and freed >= LARGE:
        trim(0)
