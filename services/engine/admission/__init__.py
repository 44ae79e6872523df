"""Who runs, who waits, who is refused: the only queue of a pod.

`gate.py` decides and holds futures; the rest is pure: the order (`fair_queue.py`), how fast the engine is and how long answers get
(`pace.py`, `lengths.py`), when a slot will be free (`forecast.py`), how long anybody may wait (`standing.py`). It knows neither HTTP nor
engines, and of those who were told to return only until when the slots are theirs.
"""

from services.engine.admission.gate import Admission
from services.engine.admission.limits import Limits
from services.engine.admission.ticket import PRIORITIES, Ask, Priority, Ticket

__all__ = ["PRIORITIES", "Admission", "Ask", "Limits", "Priority", "Ticket"]
