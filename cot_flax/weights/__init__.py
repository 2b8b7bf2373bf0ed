"""A T5's parameters in files: Hugging Face's, T5X's and ours, read and written a tensor at a time."""
