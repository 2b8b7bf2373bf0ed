"""From a checkpoint to predictions, results and a report."""
