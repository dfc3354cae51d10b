"""Experiments: one script per study, run as `python -m experiments.<name>`."""
