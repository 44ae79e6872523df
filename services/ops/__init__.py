"""The `convoy` command."""
