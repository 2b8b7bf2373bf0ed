"""A student's parameters in files: Hugging Face's, T5X's and ours, read a tensor at a time."""
