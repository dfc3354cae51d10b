"""Two small networks on digits, one of them trained against attacks."""
