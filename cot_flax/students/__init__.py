"""The models that are taught: what all families share, and one folder a family."""
