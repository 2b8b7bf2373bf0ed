"""The teacher's side: its samples, which of them to keep, and how its tokens meet the student's.

Pure Python and NumPy, so that it also runs where neither JAX nor TensorFlow is installed.
"""
