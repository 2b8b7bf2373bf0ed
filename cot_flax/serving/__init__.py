"""A student that can be asked: from Python, at the command line, and as an OpenAI-like server."""
