"""Scripts that measure; what they found is in results/.  Run as ``python -m benchmarks.speed``."""
