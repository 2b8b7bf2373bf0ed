"""A trained student leaves: a folder for Hugging Face, or a checkpoint for T5X."""
