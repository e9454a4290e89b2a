"""Searches over allocations: many are tried, by one machine or several, and the best is kept."""

from __future__ import annotations

from .found import Search as Search
from .found import Tried as Tried
from .options import Options as Options
from .run import search as search

__all__ = ["Options", "Search", "Tried", "search"]
