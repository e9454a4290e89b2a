"""``secateur demo``: train a small network on real digits, prune it, prove it, save it."""

from __future__ import annotations

from .tour import Record as Record
from .tour import run as run
