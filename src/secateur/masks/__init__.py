"""Masks on a live model, beside any optimizer, and the state that a run resumes from."""
