"""Attacks any classifier with a suite of attacks, and checks whether the result can be trusted."""
