"""The table of repairs: how what stays of a reader makes up for what goes.

A repair is a function ``(system, *, damping) -> weight``: a new weight of shape
``(out, features)``, zero off the mask.  The damping is the strength with which weights are held to
their old values, in shares of the inputs' mean second moment.  Registering it is all that it takes.

>>> import secateur.repair
>>> "least_squares" in repairs
True
"""

from __future__ import annotations

from secateur.registry import Registry

repairs = Registry("repair")
