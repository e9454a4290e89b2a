"""Prune any PyTorch model, and get one that is really smaller."""

from __future__ import annotations
