"""Delivery: planned events of the ledger are sent and become accepted.

Each event is committed as `sending` before its request leaves, and its outcome is committed
after. Events of one customer and meter form a lane: one at a time, in the order of their days
and revisions. Lanes run side by side, within the key's rate; one lane's failure stops no other.
"""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import stripe
from aiolimiter import AsyncLimiter

from billing_pipeline.ledger.events import (
    Outcome,
    Outgoing,
    change_state,
    claim,
    deliverable,
    mark_interrupted,
)
from billing_pipeline.ledger.locks import DeliveryBusy
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.model import State
from billing_pipeline.rules.timestamps import too_old
from billing_pipeline.stripe_api.answers import (
    NETWORK_ERRORS,
    TIMED_OUT,
    Answer,
    Verdict,
    read_error,
)
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.client import ForeignAnswer, MeterAccess, Progress
from billing_pipeline.stripe_api.resolution import needs_resolution, resolve
from billing_pipeline.stripe_api.retrying import backoff
from billing_pipeline.stripe_api.summaries import Summaries, pace

MAX_ATTEMPTS = 10
"""Attempts per event and run, about half a minute; then the event waits for the next run."""

IN_FLIGHT = 300
"""Events claimed and in flight at once: more than rate times latency, and few to resolve after a
crash."""

BATCH = 100
"""Events per ledger transaction, if there are that many."""

FLUSH_SECONDS = 0.1
"""Outcomes wait no longer than this to be committed."""

Send = Callable[[Outgoing], Coroutine[Any, Any, tuple[Outgoing, Outcome]]]


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """The result of one event. `success`: Stripe has it; otherwise `error` says why not."""

    success: bool
    error: str | None
    identifier: str
    state: State
    request_id: str | None = None
    sent: bool = True
    """Whether this delivery sent a request; a summary may resolve an event without one."""


@dataclass
class DeliveryReport:
    """The results of a delivery. `stopped` says why it ended early; None if it did not."""

    results: list[DeliveryResult] = field(default_factory=list)
    stopped: str | None = None
    denied: bool = False

    @property
    def sent(self) -> int:
        """Events that Stripe accepted in this delivery."""
        return sum(result.success and result.sent for result in self.results)


def deliver(
    access: MeterAccess,
    days: Sequence[date],
    payers: Payers,
    *,
    leftovers: bool = False,
    progress: Progress | None = None,
) -> DeliveryReport:
    """Send the planned and the ambiguous events of these days; resolve what may not be sent again.

    An event that is not eligible any more (`payers`), such as one for a period that was closed
    meanwhile, is not sent. If it was never sent it stays planned, to be planned again.
    `leftovers`: only events that an earlier delivery left ambiguous, whose cells wait for them.
    Events of meters that are not configured stay as they are.

    One process delivers per ledger; another one waits for it here. Whatever Stripe answers comes
    back as values.
    """
    ledger = access.ledger
    try:
        with ledger.delivering() as still_mine:
            ledger.write(mark_interrupted, access.clock())
            states = [State.AMBIGUOUS] if leftovers else [State.AMBIGUOUS, State.PLANNED]
            queue = ledger.read(deliverable, days, states)
            queue = [o for o in queue if o.event.cell.event_name in access.by_name]
            if not queue:
                return DeliveryReport()
            delivery = _Delivery(access, payers, still_mine, progress)
            with _undisturbed():
                return asyncio.run(delivery.run(queue))
    except DeliveryBusy:
        return DeliveryReport(
            stopped="another process has been delivering for too long; run again later"
        )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the garbage collector from looking through the queue again and again.

    Its pauses are longer than the rate allows: they cost 2 % of it.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Lanes:
    """Events by customer and meter, sent one by one; `ready` lanes have none in flight."""

    def __init__(self, queue: Sequence[Outgoing]) -> None:
        self._events: dict[tuple[str, str], deque[Outgoing]] = defaultdict(deque)
        for outgoing in queue:
            self._events[self._lane(outgoing)].append(outgoing)
        self.ready = deque(self._events)

    def take(self, most: int) -> list[Outgoing]:
        """The first event of up to so many lanes that are ready."""
        lanes = [self.ready.popleft() for _ in range(min(most, len(self.ready)))]
        return [self._events[lane].popleft() for lane in lanes]

    def free(self, outgoing: Outgoing) -> None:
        """Let the next event of this one's lane go, if there is one."""
        lane = self._lane(outgoing)
        if self._events[lane]:
            self.ready.append(lane)

    @staticmethod
    def _lane(outgoing: Outgoing) -> tuple[str, str]:
        return outgoing.event.customer, outgoing.event.cell.event_name


class _Delivery:
    def __init__(
        self,
        access: MeterAccess,
        payers: Payers,
        still_mine: Callable[[], None],
        progress: Progress | None,
    ) -> None:
        self._access = access
        self._gateway = access.gateway
        self._ledger = access.ledger
        self._meters = access.by_name
        self._clock = access.clock
        self._payers = payers
        self._still_mine = still_mine
        self._progress = progress or (lambda done, total: None)
        self._report = DeliveryReport()
        self._total = 0

    async def run(self, queue: list[Outgoing]) -> DeliveryReport:
        self._total = len(queue)
        async with self._gateway.client() as client:
            fresh = await self._set_aside(client, queue)
            limiter = pace(self._gateway)

            async def send(outgoing: Outgoing) -> tuple[Outgoing, Outcome]:
                return outgoing, await self._send(client, limiter, outgoing)

            unknown = await self._drive(fresh, send)
            await self._resolve(client, unknown, sent=True)
        return self._report

    async def _set_aside(
        self, client: stripe.StripeClient, queue: list[Outgoing]
    ) -> list[Outgoing]:
        """Resolve old events, reject those that are too old; return those that may be sent."""
        now = self._clock()
        doubtful = [
            o
            for o in queue
            if o.state is State.AMBIGUOUS and (needs_resolution(o, now) or self._not_eligible(o))
        ]
        await self._resolve(client, doubtful, sent=False)
        kept = {o.id for o in queue if not self._not_eligible(o)} - {o.id for o in doubtful}
        aged = [o for o in queue if o.id in kept and too_old(o.event.timestamp, now)]
        refused = [
            Outcome(
                o.id,
                State.REJECTED,
                error_code="timestamp_too_far_in_past",
                error_message="never sent: it was older than 34 days before it could be sent",
            )
            for o in aged
        ]
        self._ledger.write(change_state, refused, now, was={State.PLANNED})
        for outgoing, outcome in zip(aged, refused, strict=True):
            self._finish(outgoing, outcome, sent=False)
            kept.remove(outgoing.id)
        return [o for o in queue if o.id in kept]

    async def _resolve(
        self, client: stripe.StripeClient, doubtful: Sequence[Outgoing], *, sent: bool
    ) -> None:
        """Resolve ambiguous events by Stripe's summaries, as far as these can decide yet."""
        if doubtful:
            never_again = {o.id for o in doubtful if self._not_eligible(o)}
            with Reads(self._ledger, self._gateway.reads_a_month, self._clock) as reads:
                summaries = Summaries(client, reads, pace(self._gateway))
                outcomes = await resolve(summaries, self._access, doubtful, never_again)
            self._ledger.write(change_state, outcomes, self._clock(), was={State.AMBIGUOUS})
            by_id = {outgoing.id: outgoing for outgoing in doubtful}
            for outcome in outcomes:
                self._finish(by_id[outcome.id], outcome, sent=sent)

    async def _drive(self, queue: Sequence[Outgoing], send: Send) -> list[Outgoing]:
        """Keep lanes moving: claim a batch, send it, record the outcomes, claim again.

        Returns the events whose outcome is still unknown.
        """
        lanes, unknown = _Lanes(queue), list[Outgoing]()
        flying: set[asyncio.Task[tuple[Outgoing, Outcome]]] = set()
        landed: list[Outcome] = []
        flushed = asyncio.get_running_loop().time()
        while flying or landed or self._goes_on(lanes):
            room = IN_FLIGHT - len(flying)
            if self._goes_on(lanes) and room >= min(BATCH, len(lanes.ready)):
                batch, too_late = await self._next(lanes, room)
                flying |= {asyncio.ensure_future(send(outgoing)) for outgoing in batch}
                unknown += too_late
            if flying:
                done, flying = await asyncio.wait(
                    flying, timeout=FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                # Sorted, because a set has no order and a simulated delivery must be repeatable.
                for outgoing, outcome in sorted((t.result() for t in done), key=_row_id):
                    landed.append(outcome)
                    if outcome.state is State.AMBIGUOUS:
                        unknown.append(replace(outgoing, last_attempt_at=self._clock()))
                    else:
                        self._finish(outgoing, outcome)
                    # A request that timed out may still be executed: its lane waits.
                    if outcome.error_code != TIMED_OUT:
                        lanes.free(outgoing)
            now = asyncio.get_running_loop().time()
            if landed and (len(landed) >= BATCH or now - flushed > FLUSH_SECONDS or not flying):
                outcomes, landed, flushed = landed, [], now
                await asyncio.to_thread(
                    self._ledger.write, change_state, outcomes, self._clock(), was={State.SENDING}
                )
        return unknown

    def _goes_on(self, lanes: _Lanes) -> bool:
        return bool(lanes.ready) and self._report.stopped is None

    async def _next(self, lanes: _Lanes, room: int) -> tuple[list[Outgoing], list[Outgoing]]:
        """Commit as `sending` what may be sent now, up to `room` events.

        Returns these, and ambiguous ones for which it is too late.
        """
        batch = lanes.take(room)
        too_late = [outgoing for outgoing in batch if self._too_late(outgoing)]
        ids = [outgoing.id for outgoing in batch if outgoing not in too_late]
        claimed = await asyncio.to_thread(self._claim, ids)
        for outgoing in batch:
            if outgoing.id not in claimed:
                lanes.free(outgoing)
        unknown = [outgoing for outgoing in too_late if outgoing.state is State.AMBIGUOUS]
        return [outgoing for outgoing in batch if outgoing.id in claimed], unknown

    def _claim(self, ids: list[int]) -> set[int]:
        self._still_mine()
        return self._ledger.write(claim, ids, self._clock())

    def _not_eligible(self, outgoing: Outgoing) -> bool:
        """Whether the event may not be reported any more."""
        event = outgoing.event
        meter = self._meters[event.cell.event_name]
        eligibility = self._payers.eligibility_of(event.customer)
        return eligibility.hold_reason(meter.meter_id, event.timestamp) is not None

    def _too_late(self, outgoing: Outgoing) -> bool:
        """Whether the event may no longer be sent: it may have waited for long."""
        now = self._clock()
        return too_old(outgoing.event.timestamp, now) or (
            outgoing.state is State.AMBIGUOUS and needs_resolution(outgoing, now)
        )

    async def _send(
        self, client: stripe.StripeClient, limiter: AsyncLimiter, outgoing: Outgoing
    ) -> Outcome:
        """Send one event until its outcome is known, or until trying again is of no use for now."""
        doubtful = outgoing.state is State.AMBIGUOUS
        if outgoing.first_attempt_at is None:
            outgoing = replace(outgoing, first_attempt_at=self._clock())
        answer = Answer(Verdict.NOT_EXECUTED, message="it became too old while it waited")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await limiter.acquire()
            state = State.AMBIGUOUS if doubtful else State.PLANNED
            if self._too_late(replace(outgoing, state=state)):
                break
            answer = await self._attempt(client, outgoing)
            if answer.verdict is Verdict.ACCEPTED:
                return Outcome(outgoing.id, State.ACCEPTED, attempt - 1, answer.request_id)
            # A refusal says nothing about an earlier attempt, which may have been counted.
            if answer.verdict is Verdict.REFUSED and not doubtful:
                return _outcome(outgoing, State.REJECTED, attempt, answer)
            doubtful = doubtful or answer.verdict is Verdict.UNKNOWN
            if answer.verdict is Verdict.DENIED:
                self._stop(str(answer.message), denied=True)
            stopped = self._report.stopped is not None
            refused = answer.verdict is Verdict.REFUSED
            if attempt == MAX_ATTEMPTS or stopped or refused or not answer.again:
                break
            await asyncio.sleep(backoff(attempt, outgoing.event.identifier, answer.retry_after))
        if answer.verdict is Verdict.UNREACHABLE:
            self._stop(f"Stripe cannot be reached: {answer.message}")
        state = State.AMBIGUOUS if doubtful else State.PLANNED
        return _outcome(outgoing, state, attempt, answer)

    async def _attempt(self, client: stripe.StripeClient, outgoing: Outgoing) -> Answer:
        event = outgoing.event
        meter = self._meters[event.cell.event_name]
        try:
            created = await client.v1.billing.meter_events.create_async(
                {
                    "event_name": event.cell.event_name,
                    "identifier": event.identifier,
                    "timestamp": event.timestamp,
                    "payload": event.payload(meter),
                },
                {"idempotency_key": event.idempotency_key(meter)},
            )
        except (stripe.StripeError, *NETWORK_ERRORS) as error:
            return read_error(error)
        if (
            getattr(created, "object", None) != "billing.meter_event"
            or created.identifier != event.identifier
        ):
            return read_error(ForeignAnswer(200))
        response = created.last_response
        return Answer(Verdict.ACCEPTED, response.request_id if response else None)

    def _stop(self, why: str, *, denied: bool = False) -> None:
        if self._report.stopped is None:
            self._report.stopped = why
            self._report.denied = denied

    def _finish(self, outgoing: Outgoing, outcome: Outcome, *, sent: bool = True) -> None:
        accepted = outcome.state is State.ACCEPTED
        self._report.results.append(
            DeliveryResult(
                accepted,
                None if accepted else outcome.error_message,
                outgoing.event.identifier,
                outcome.state,
                outcome.request_id,
                sent,
            )
        )
        self._progress(len(self._report.results), self._total)


def _row_id(landed: tuple[Outgoing, Outcome]) -> int:
    return landed[0].id


def _outcome(outgoing: Outgoing, state: State, attempt: int, answer: Answer) -> Outcome:
    return Outcome(outgoing.id, state, attempt - 1, answer.request_id, answer.code, answer.message)
