"""From a data set to batches, through SeqIO. With tasks/ the only home of TensorFlow."""

import tensorflow as tf

# TensorFlow only reads data here; the accelerator belongs to JAX.
tf.config.set_visible_devices([], "GPU")
