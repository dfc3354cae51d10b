"""A training run on the host: `fit`, its loop, checkpoints, logs and devices."""
