"""The trainer: JAX, optax and orbax, no TensorFlow. `loop.train` is the place to start reading."""
