"""NNI's path of its replacers for models of Hugging Face."""
