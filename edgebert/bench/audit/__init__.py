"""Whether a backend computes what it answers."""
