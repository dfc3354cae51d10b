"""One training step and one evaluation step as pure functions, and the values that configure them."""
