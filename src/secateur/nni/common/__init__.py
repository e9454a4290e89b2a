"""NNI's paths outside of its compression that scripts which prune import."""
