"""The embedded world: arithmetic stories, a teacher known exactly, general abilities. No download.

Everything here is plain Python, seeded, and the same on every machine.
"""
