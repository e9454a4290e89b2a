"""Random programs, pruned at random, and judged from outside of the library."""
