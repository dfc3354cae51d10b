"""Reproduces source 004: trains and compresses robust networks in one training, and attacks them."""
