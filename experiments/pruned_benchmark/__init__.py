"""Source 003: what filter pruning does to accuracy, attacks, time and size, with a control."""
