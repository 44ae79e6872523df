from __future__ import annotations

import random

from services.engine.admission.fair_queue import FairQueue
from services.engine.admission.ticket import PRIORITIES, Ask, Ticket


def ticket(client: str, tokens: int = 100, priority: str = "normal") -> Ticket:
    """One that waits, of a known cost."""
    return Ticket(Ask(client=client, num_prompt_tokens=0, priority=priority), 0.0, 1.0, tokens)  # type: ignore[arg-type]


def served(queue: FairQueue, count: int) -> list[Ticket]:
    """The next ones."""
    return [queue.take_first() for _ in range(count)]


def test_clients_get_equal_shares_of_tokens_not_of_requests() -> None:
    """One asks for 400 tokens each time, one for 50: while both wait they get the same number of tokens, within one request."""
    queue = FairQueue()
    for _ in range(100):
        queue.push(ticket("large", 400))
        queue.push(ticket("small", 50))
    tokens = {"large": 0.0, "small": 0.0}
    for one in served(queue, 45):
        tokens[one.ask.client] += one.cost
    assert abs(tokens["large"] - tokens["small"]) <= 400


def test_within_a_client_they_go_as_they_came() -> None:
    """Whatever they cost."""
    queue, costs = FairQueue(), [500, 1, 70, 300]
    for cost in costs:
        queue.push(ticket("one", cost))
    assert [one.cost for one in served(queue, 4)] == costs


def test_the_order_told_is_the_order_kept() -> None:
    """`in_order` plays it through without changing it, for any mix of clients, costs and priorities."""
    chance = random.Random(7)
    queue = FairQueue()
    for _ in range(300):
        queue.push(ticket(chance.choice("abcde"), chance.randint(1, 900), chance.choice(PRIORITIES)))
    served(queue, 20)
    told = list(queue.in_order())
    assert len(queue) == 280
    assert served(queue, 280) == told
    assert [PRIORITIES.index(one.ask.priority) for one in told] == sorted(PRIORITIES.index(one.ask.priority) for one in told)
    assert (len(queue), queue.seconds, queue.num_bytes) == (0, 0.0, 0)


def test_who_makes_room() -> None:
    """First the lowest priority, then whoever has most places; nobody for one who has as many."""
    queue = FairQueue()
    many, few = [ticket("many") for _ in range(3)], ticket("few")
    for one in (*many, few):
        queue.push(one)
    assert queue.least_worthy(ticket("new")) is many[-1]
    assert queue.least_worthy(ticket("few")) is many[-1]
    assert queue.least_worthy(ticket("many")) is None
    assert queue.least_worthy(ticket("many", priority="low")) is None
    low = ticket("many", priority="low")
    queue.push(low)
    assert queue.least_worthy(ticket("many")) is low
