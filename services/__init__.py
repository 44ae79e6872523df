"""The Python code of Convoy, importable as it lies."""
