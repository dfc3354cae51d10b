"""Reproduces source 003, with controls: effects of filter pruning on accuracy, attacks, time, size."""
