"""Pruning inside other people's trainers: one file and one callback for each.

Import the one that you need; ``secateur`` itself imports none of them.
"""
