"""Metrics for Prometheus: counters of this service, and gauges of the event records.

Worker processes count in files of one folder (PROMETHEUS_MULTIPROC_DIR, created by `server`). So
each of them answers for all, and the counts of a killed one are not lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from webhook_handler.store import Backlog

STATES = ("received", "processed", "ignored", "failed")

_own = CollectorRegistry()
RECEIVED = Counter(
    "stripe_webhook_received", "Events stored for the first time.", ["style"], registry=_own
)
DUPLICATES = Counter(
    "stripe_webhook_duplicates", "Deliveries of events stored before.", registry=_own
)
REFUSED = Counter(
    "stripe_webhook_refused", "Requests refused, by reason.", ["reason"], registry=_own
)
STORE_SECONDS = Histogram(
    "stripe_webhook_store_seconds",
    "Seconds from the verified signature to the commit.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=_own,
)


class _BacklogCollector(Collector):
    def __init__(self, backlog: Backlog, now: datetime) -> None:
        self._backlog = backlog
        self._now = now

    def collect(self) -> Iterable[GaugeMetricFamily]:
        states = GaugeMetricFamily(
            "stripe_events_backlog", "Event records by state.", labels=["state"]
        )
        for state in STATES:
            states.add_metric([state], self._backlog.by_state.get(state, 0))
        oldest = self._backlog.oldest_received
        age = (self._now - oldest).total_seconds() if oldest is not None else 0.0
        return [
            states,
            GaugeMetricFamily(
                "stripe_events_oldest_unprocessed_seconds",
                "Seconds since the oldest event that waits to be applied was received.",
                value=max(0.0, age),
            ),
        ]


def page(backlog: Backlog | None, now: datetime) -> bytes:
    """All metrics in Prometheus' text format; without `backlog`, only the counters."""
    counters = _own
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        counters = CollectorRegistry()
        MultiProcessCollector(counters)  # type: ignore[no-untyped-call]
    text: bytes = generate_latest(counters)
    if backlog is not None:
        gauges = CollectorRegistry()
        gauges.register(_BacklogCollector(backlog, now))
        text += generate_latest(gauges)
    return text
