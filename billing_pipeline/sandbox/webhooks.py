"""Delivering the sandbox's events to a URL as Stripe does: signed again each time, more than once,
in any order, late, and again until they are answered with 2xx. Chance comes from the seed.
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

from billing_pipeline.sandbox.faults import Faults
from billing_pipeline.sandbox.news import News, notification

POLL_SECONDS = 0.02
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between attempts, doubling; Stripe's own take hours."""


@dataclass
class Endpoint:
    """Where events go, with the secrets of its ordinary and of its thin destination."""

    url: str
    secret: str
    thin_secret: str
    connections: int = 8


@dataclass
class Post:
    """The mail of an account. `wall_clock` gives the time that signatures carry."""

    news: News
    wall_clock: Callable[[], float]
    seed: int = 0
    faults: Callable[[], Faults] = Faults
    endpoint: Endpoint | None = None
    taken: set[str] = field(default_factory=set)
    """Events that were answered with 2xx at least once."""
    lost: set[str] = field(default_factory=set)
    """Events that are never delivered."""
    answers: Counter[str] = field(default_factory=Counter)
    """Answers by status, `error` where there was none."""
    _queue: list[tuple[float, int, int, dict[str, Any]]] = field(default_factory=list)
    _read: int = 0
    _numbers: int = 0
    _flying: int = 0

    @property
    def idle(self) -> bool:
        """Whether everything that was told has been delivered, as often as it was meant to be."""
        return self._read == len(self.news.events) and not self._queue and not self._flying

    async def deliver_forever(self) -> None:
        """Post what there is, until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            tasks: set[asyncio.Task[None]] = set()
            while True:
                self._sort_mail()
                loop = asyncio.get_running_loop()
                most = self.endpoint.connections if self.endpoint else 0
                while self._queue and self._queue[0][0] <= loop.time() and len(tasks) < most:
                    _, _, attempt, event = heapq.heappop(self._queue)
                    self._flying += 1
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

    def _sort_mail(self) -> None:
        """Decide for each new event how often and how late it is delivered."""
        while self.endpoint is not None and self._read < len(self.news.events):
            event = self.news.events[self._read]
            self._read += 1
            chance = random.Random(f"{self.seed}:{event['id']}")
            faults = self.faults()
            if chance.random() < faults.webhook_lost:
                self.lost.add(event["id"])
                continue
            copies = 1
            while copies < 5 and chance.random() < faults.webhook_duplicates:
                copies += 1
            for _ in range(copies):
                self._put(event, 1, chance.random() * faults.webhook_delay)

    def _put(self, event: dict[str, Any], attempt: int, delay: float) -> None:
        self._numbers += 1
        due = asyncio.get_running_loop().time() + delay
        heapq.heappush(self._queue, (due, self._numbers, attempt, event))

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
            self.taken.add(event["id"])
        else:
            self._put(event, attempt + 1, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)))
        self._flying -= 1
