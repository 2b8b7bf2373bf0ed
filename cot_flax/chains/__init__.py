"""Teacher's chains on their way to a store: files, filters, alignment. NumPy only."""
