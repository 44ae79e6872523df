"""What several pods share for a short time. It imports no service.

On one machine that is a SQLite file (`leases.py`); nothing in it needs to survive a restart of the machine.
"""
