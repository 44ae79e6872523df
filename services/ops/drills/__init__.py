"""Faults that are done to a running stack on purpose, one module each; `table.py` lists them. No test framework here: tests call them."""
