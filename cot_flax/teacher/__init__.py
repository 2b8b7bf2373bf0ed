"""The teacher's side: which questions are asked and how, and the samples that come back.

Pure Python and NumPy, so that it also runs where neither JAX nor TensorFlow is installed; `local`
holds the teachers that are models on this machine.
"""
