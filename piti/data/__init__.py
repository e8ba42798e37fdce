"""From datasets as they are distributed to batches for training."""
