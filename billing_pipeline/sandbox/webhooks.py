"""Delivery of the sandbox's events to a URL, as Stripe delivers webhooks.

Each attempt has its own signature, and an event is retried until it is answered with 2xx. With
faults, events are lost, duplicated, delayed and reordered; the seed decides which.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import stripe

from billing_pipeline.sandbox.events import Outbox, notification
from billing_pipeline.sandbox.faults import Faults

POLL_SECONDS = 0.02
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts; each pause is twice the one before. Stripe's take hours."""
MOST_COPIES = 5
"""Deliveries of one event, at most."""


@dataclass
class Endpoint:
    """Where events are sent, and the secrets that sign snapshot events and thin events."""

    url: str
    secret: str
    thin_secret: str
    connections: int = 8


@dataclass
class WebhookDelivery:
    """Delivers the events of an account. `wall_clock` gives the time in the signatures."""

    outbox: Outbox
    wall_clock: Callable[[], float]
    seed: int = 0
    faults: Callable[[], Faults] = Faults
    endpoint: Endpoint | None = None
    delivered: set[str] = field(default_factory=set)
    """Ids of events that were answered with 2xx at least once."""
    lost: set[str] = field(default_factory=set)
    """Ids of events that are never delivered."""
    answers: Counter[str] = field(default_factory=Counter)
    """Number of answers by status; `error` where there was none."""
    _queue: list[tuple[float, int, int, dict[str, Any]]] = field(default_factory=list)
    _scheduled: int = 0
    """How many events of the outbox were put into the queue, or lost."""
    _attempts: int = 0
    _in_flight: int = 0

    @property
    def idle(self) -> bool:
        """Whether every scheduled delivery was made, and no event waits for its schedule."""
        pending = self._scheduled < len(self.outbox.events)
        return not (pending or self._queue or self._in_flight)

    async def deliver_forever(self) -> None:
        """Deliver events until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            tasks: set[asyncio.Task[None]] = set()
            while True:
                self._schedule_new()
                loop = asyncio.get_running_loop()
                most = self.endpoint.connections if self.endpoint else 0
                while self._queue and self._queue[0][0] <= loop.time() and len(tasks) < most:
                    _, _, attempt, event = heapq.heappop(self._queue)
                    self._in_flight += 1
                    tasks.add(asyncio.ensure_future(self._send(session, event, attempt)))
                done, tasks = (
                    await asyncio.wait(tasks, timeout=POLL_SECONDS,
                                       return_when=asyncio.FIRST_COMPLETED)
                    if tasks else (set(), tasks)
                )  # fmt: skip
                for task in done:
                    task.result()
                if not done:
                    await asyncio.sleep(POLL_SECONDS)

    def _schedule_new(self) -> None:
        """Decide how often and how late each new event is delivered."""
        while self.endpoint is not None and self._scheduled < len(self.outbox.events):
            event = self.outbox.events[self._scheduled]
            self._scheduled += 1
            chance = random.Random(f"{self.seed}:{event['id']}")
            faults = self.faults()
            if chance.random() < faults.webhook_lost:
                self.lost.add(event["id"])
                continue
            copies = 1
            while copies < MOST_COPIES and chance.random() < faults.webhook_duplicates:
                copies += 1
            for _ in range(copies):
                self._schedule(event, 1, chance.random() * faults.webhook_delay)

    def _schedule(self, event: dict[str, Any], attempt: int, delay: float) -> None:
        self._attempts += 1
        due = asyncio.get_running_loop().time() + delay
        heapq.heappush(self._queue, (due, self._attempts, attempt, event))

    async def _send(
        self, session: aiohttp.ClientSession, event: dict[str, Any], attempt: int
    ) -> None:
        endpoint = self.endpoint
        assert endpoint is not None
        body = json.dumps(notification(event))
        secret = endpoint.secret if event["object"] == "event" else endpoint.thin_secret
        header = stripe.WebhookSignature.generate_signature_header(
            body, secret, int(self.wall_clock())
        )
        headers = {"stripe-signature": header, "content-type": "application/json"}
        try:
            async with session.post(endpoint.url, data=body, headers=headers) as answer:
                await answer.read()
                status = str(answer.status)
        except (aiohttp.ClientError, TimeoutError):
            status = "error"
        self.answers[status] += 1
        if status.startswith("2"):
            self.delivered.add(event["id"])
        else:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1))
            self._schedule(event, attempt + 1, pause)
        self._in_flight -= 1
