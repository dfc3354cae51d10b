"""The study of Sports-10: `python -m experiments.sports10 --help`."""
