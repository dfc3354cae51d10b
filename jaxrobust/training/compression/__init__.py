"""Methods that compress a network during training."""
