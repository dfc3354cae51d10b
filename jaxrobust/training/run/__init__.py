"""A training run on the host: `fit`, its loop, its checkpoints, its logs, its devices."""
