"""One module a file format, each reading a tensor at a time."""
