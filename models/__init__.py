"""Models that ship with Convoy."""
