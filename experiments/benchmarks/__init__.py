"""Benchmarks: timings against peers, never asserted in tests."""
