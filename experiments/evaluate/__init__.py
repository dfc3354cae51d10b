"""Anybody's classifier under a suite of attacks, with checks of whether the result can be trusted."""
