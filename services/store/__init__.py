"""What several pods share for a short time. It imports no service.

On one machine that is a SQLite file (`sqlite.py`); nothing in it needs to survive a restart of the machine. `leases.py` counts what each
client has in progress, `promises.py` knows who was told to return, whichever pod said so.
"""
