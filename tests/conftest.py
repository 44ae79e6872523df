"""What holds for every test."""

from __future__ import annotations

import signal

# Who is started in the background by a shell without job control ignores Ctrl-C, and so would every program that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
