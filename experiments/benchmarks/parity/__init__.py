"""Parity with PyTorch attack libraries: the same networks, images and radii on both sides."""
