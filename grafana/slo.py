"""What we promise, in numbers, once: the thresholds of the dashboards mean these."""

from __future__ import annotations

AVAILABILITY = 0.995
"""Share of requests that are answered without a 5xx. A 429 is a refusal in time, not a failure."""
ERROR_BUDGET = 1 - AVAILABILITY
"""Share of requests that may fail."""
MIN_REQUESTS = 2000
"""Failures that clients saw are a share of at least so many requests: a range may fail ten times, so that the probes of a stack that starts
do not spend its budget."""
FIRST_TOKEN_SECONDS = 2.0
"""95 of 100 first tokens arrive within this, queue included: a person who waits longer thinks that it hangs."""
BETWEEN_TOKENS_SECONDS = 0.25
"""p95 of the mean time between tokens of an answer: about the pace at which people read."""

# Not promised to anybody, but what the promises rest on.
EVENT_LOOP_LAG_SECONDS = 0.01
"""A pod's event loop that wakes later than this delays every token by as much."""
QUEUE_SHARE = 0.8
"""A queue fuller than this is about to refuse."""
MEMORY_BYTES = 4 * 1024**3
"""More than this in one pod is far beyond the demo model: a leak, or a model for which the machine was not chosen."""
RESTARTS_PER_HOUR = 1
"""A pod that is started again costs what it had in flight; twice an hour is no accident."""
SLOTS_WARN = 0.8
"""With more of the slots in use, one pod less means a queue."""
ENGINE_ERRORS = 0.01
"""Broken generations a second: one in a minute and a half is a fault, not an accident."""
CACHE_FULL = 0.95
"""A KV cache fuller than this holds requests back."""
RETRY_SHARE = 0.2
"""With more second tries than this among all, pods refuse or fail so often that the tries are a load of their own."""
BREAKER_SHARE = 0.8
"""A circuit breaker fuller than this is about to open."""
