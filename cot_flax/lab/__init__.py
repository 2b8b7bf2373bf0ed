"""The embedded world and the demo."""
