"""NNI's paths of its base classes and settings."""
