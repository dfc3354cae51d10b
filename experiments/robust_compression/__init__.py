"""Source 004 done again: robust networks trained and compressed in one go, and what is left of them."""
