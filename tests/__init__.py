"""The tests mirror the package; tests.zoo holds the models that they share with benchmarks/."""
