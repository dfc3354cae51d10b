"""One step of training and one of evaluation: pure functions, and the values that say how."""
