"""Engines as a whole, each in the environment that has what it needs."""
