"""Delivery: from the ledger's planned events to accepted ones.

Each event is committed as `sending` before its request leaves, and its outcome is committed
after. Events of one customer and meter form a lane: one at a time, in the order of their days
and revisions. Lanes run side by side, within the key's rate; one lane's failure stops no other.
"""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime

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
from billing_pipeline.ledger.ledger import Ledger
from billing_pipeline.ledger.locks import DeliveryBusy
from billing_pipeline.rules.eligibility import Payers
from billing_pipeline.rules.model import (
    Meter,
    State,
)
from billing_pipeline.rules.timestamps import too_old
from billing_pipeline.stripe_api.answers import (
    NETWORK_ERRORS,
    TIMED_OUT,
    Answer,
    Verdict,
    read_error,
)
from billing_pipeline.stripe_api.budget import Reads
from billing_pipeline.stripe_api.client import StripeGateway
from billing_pipeline.stripe_api.resolution import needs_resolution, resolve
from billing_pipeline.stripe_api.retrying import backoff

MAX_ATTEMPTS = 10
"""Attempts per event and run, about half a minute; then the event waits for the next run."""

IN_FLIGHT = 300
"""Events claimed and under way at once: more than rate x latency needs, little to redo."""

BATCH = 100
"""Events per ledger transaction, where there are that many."""

FLUSH_SECONDS = 0.1
"""Outcomes wait no longer than this to be committed."""

Clock = Callable[[], datetime]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """What became of one event. `success` means that Stripe has it; `error` says why not."""

    success: bool
    error: str | None
    identifier: str
    state: State
    request_id: str | None = None
    sent: bool = True
    """Whether a request left in this delivery; a summary may resolve an event without one."""


@dataclass
class DeliveryReport:
    """What one delivery did. `stopped` says why it ended early, None when it did not."""

    results: list[DeliveryResult] = field(default_factory=list)
    stopped: str | None = None
    denied: bool = False

    @property
    def sent(self) -> int:
        """Events that Stripe took in this delivery."""
        return sum(result.success and result.sent for result in self.results)


def deliver(
    gateway: StripeGateway,
    ledger: Ledger,
    meters: Sequence[Meter],
    days: Sequence[date],
    clock: Clock,
    progress: Progress | None = None,
    *,
    payers: Payers,
    leftovers: bool = False,
) -> DeliveryReport:
    """Send what is planned or ambiguous for these days; resolve what may not be sent again.

    What may not be reported any more on the customer's eligibility (`payers`), such as for a period that
    was closed meanwhile, is not sent: if it was never sent it stays planned, to be planned again.
    With `leftovers`, only what an earlier delivery left ambiguous, whose cells wait for it.
    Events of meters that are not among `meters` stay as they are.

    One process delivers per ledger; another waits for it here. Whatever Stripe may answer
    comes back as values.
    """
    try:
        with ledger.delivering() as still_mine:
            ledger.write(mark_interrupted, clock())
            by_name = {meter.event_name: meter for meter in meters}
            states = [State.AMBIGUOUS] if leftovers else [State.AMBIGUOUS, State.PLANNED]
            queue = ledger.read(deliverable, days, states)
            queue = [o for o in queue if o.event.cell.event_name in by_name]
            if not queue:
                return DeliveryReport()
            delivery = _Delivery(gateway, ledger, by_name, payers, clock, still_mine, progress)
            with _undisturbed():
                return asyncio.run(delivery.run(queue))
    except DeliveryBusy:
        return DeliveryReport(
            stopped="another process has been delivering for too long; run again later"
        )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The garbage collector leaves alone what lives already, such as the queue.

    Looking through it again and again takes longer than the rate lets a pause be: 2 % of it lost.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Delivery:
    def __init__(
        self,
        gateway: StripeGateway,
        ledger: Ledger,
        meters: Mapping[str, Meter],
        payers: Payers,
        clock: Clock,
        still_mine: Callable[[], None],
        progress: Progress | None,
    ) -> None:
        self._gateway = gateway
        self._ledger = ledger
        self._meters = meters
        self._payers = payers
        self._clock = clock
        self._still_mine = still_mine
        self._progress = progress or (lambda done, total: None)
        self._report = DeliveryReport()
        self._total = 0

    async def run(self, queue: list[Outgoing]) -> DeliveryReport:
        self._total = len(queue)
        async with self._gateway.client() as client:
            fresh = await self._set_aside(client, queue)
            # A bucket of 50 ms: close to an even flow, so that no second exceeds the rate.
            limiter = AsyncLimiter(self._gateway.calls_per_second * 0.05, 0.05)

            async def send(outgoing: Outgoing) -> tuple[Outgoing, Outcome]:
                return outgoing, await self._send(client, limiter, outgoing)

            unknown = await self._drive(fresh, send)
            await self._resolve(client, unknown, sent=True)
        return self._report

    async def _set_aside(
        self, client: stripe.StripeClient, queue: list[Outgoing]
    ) -> list[Outgoing]:
        """Resolve the old and refuse the too old; returns what may be sent."""
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
                error_message="never sent: it grew older than 34 days before it could be",
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
        """Decide ambiguous events by Stripe's summaries, as far as these can decide yet."""
        if doubtful:
            never_again = {o.id for o in doubtful if self._not_eligible(o)}
            with Reads(self._ledger, self._gateway.reads_a_month, self._clock) as reads:
                expected = await resolve(
                    client, reads, self._ledger, self._meters, doubtful, never_again, self._clock()
                )
            self._ledger.write(change_state, expected, self._clock(), was={State.AMBIGUOUS})
            by_id = {outgoing.id: outgoing for outgoing in doubtful}
            for outcome in expected:
                self._finish(by_id[outcome.id], outcome, sent=sent)

    async def _drive(
        self,
        queue: Sequence[Outgoing],
        send: Callable[[Outgoing], Awaitable[tuple[Outgoing, Outcome]]],
    ) -> list[Outgoing]:
        """Keep lanes moving: claim a batch, let it fly, record what came back, claim again.

        Returns the events whose outcome is still unknown.
        """
        unknown: list[Outgoing] = []
        lanes: dict[tuple[str, str], deque[Outgoing]] = defaultdict(deque)
        for outgoing in queue:
            lanes[_lane(outgoing)].append(outgoing)
        ready = deque(lanes)
        flying: set[asyncio.Task[tuple[Outgoing, Outcome]]] = set()
        landed: list[Outcome] = []
        flushed = asyncio.get_running_loop().time()
        while flying or landed or (ready and self._report.stopped is None):
            room = IN_FLIGHT - len(flying)
            if ready and self._report.stopped is None and room >= min(BATCH, len(ready)):
                batch = [lanes[ready.popleft()].popleft() for _ in range(min(room, len(ready)))]
                stale = [outgoing for outgoing in batch if self._too_late(outgoing)]
                unknown += [outgoing for outgoing in stale if outgoing.state is State.AMBIGUOUS]
                ids = [outgoing.id for outgoing in batch if outgoing not in stale]
                claimed = await asyncio.to_thread(self._claim, ids)
                for outgoing in batch:
                    if outgoing.id in claimed:
                        flying.add(asyncio.ensure_future(send(outgoing)))
                    elif lanes[_lane(outgoing)]:
                        ready.append(_lane(outgoing))
            if flying:
                done, flying = await asyncio.wait(
                    flying, timeout=FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                # In their order: a set has none, and a simulated delivery is to be repeatable.
                for outgoing, outcome in sorted((t.result() for t in done), key=_row_id):
                    landed.append(outcome)
                    if outcome.state is State.AMBIGUOUS:
                        unknown.append(replace(outgoing, last_attempt_at=self._clock()))
                    else:
                        self._finish(outgoing, outcome)
                    # A request that timed out may still be at work in Stripe: the lane rests.
                    if lanes[_lane(outgoing)] and outcome.error_code != TIMED_OUT:
                        ready.append(_lane(outgoing))
            now = asyncio.get_running_loop().time()
            if landed and (len(landed) >= BATCH or now - flushed > FLUSH_SECONDS or not flying):
                outcomes, landed, flushed = landed, [], now
                await asyncio.to_thread(
                    self._ledger.write, change_state, outcomes, self._clock(), was={State.SENDING}
                )
        return unknown

    def _claim(self, ids: list[int]) -> set[int]:
        self._still_mine()
        return self._ledger.write(claim, ids, self._clock())

    def _not_eligible(self, outgoing: Outgoing) -> bool:
        """Whether the customer's eligibility forbid to report this by now."""
        event = outgoing.event
        meter = self._meters[event.cell.event_name]
        eligibility = self._payers.eligibility_of(event.customer)
        return eligibility.hold_reason(meter.meter_id, event.timestamp) is not None

    def _too_late(self, outgoing: Outgoing) -> bool:
        """Whether the event may no longer be sent: queues and machines can stand still."""
        now = self._clock()
        return too_old(outgoing.event.timestamp, now) or (
            outgoing.state is State.AMBIGUOUS and needs_resolution(outgoing, now)
        )

    async def _send(
        self, client: stripe.StripeClient, limiter: AsyncLimiter, outgoing: Outgoing
    ) -> Outcome:
        """Send one event until its outcome is known or trying again is pointless for now."""
        doubtful = outgoing.state is State.AMBIGUOUS
        if outgoing.first_attempt_at is None:
            outgoing = replace(outgoing, first_attempt_at=self._clock())
        answer = Answer(Verdict.NOT_EXECUTED, message="it grew too old while it waited")
        for attempt in range(1, MAX_ATTEMPTS + 1):
            await limiter.acquire()
            state = State.AMBIGUOUS if doubtful else State.PLANNED
            if self._too_late(replace(outgoing, state=state)):
                break
            answer = await self._attempt(client, outgoing)
            if answer.verdict is Verdict.ACCEPTED:
                return Outcome(outgoing.id, State.ACCEPTED, attempt - 1, answer.request_id)
            # A refusal says nothing about an earlier attempt that may have been counted.
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


def _lane(outgoing: Outgoing) -> tuple[str, str]:
    """What goes one by one: a customer and a meter."""
    return outgoing.event.customer, outgoing.event.cell.event_name


def _outcome(outgoing: Outgoing, state: State, attempt: int, answer: Answer) -> Outcome:
    return Outcome(outgoing.id, state, attempt - 1, answer.request_id, answer.code, answer.message)
