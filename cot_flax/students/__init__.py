"""The models that are taught: what is common to all families, and one folder a family."""
