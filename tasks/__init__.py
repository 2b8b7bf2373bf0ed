"""One file a data set; importing it registers its tasks. The one import path is cot_flax.tasks."""
