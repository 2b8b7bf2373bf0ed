"""The student: T5, its attention, its losses and its decoder. JAX and Flax only."""
