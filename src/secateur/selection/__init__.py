"""What stays: from a config and a model to what is ranked, and from scores to a decision."""
