"""Methods that compress a network while it is trained."""
