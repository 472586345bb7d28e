"""The account guard, and the meters as last seen in Stripe."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from billing_pipeline.database import upsert
from billing_pipeline.errors import ConfigurationError
from billing_pipeline.ledger.ledger import Writer
from billing_pipeline.ledger.rows import meter_of, row_as_json
from billing_pipeline.ledger.tables import account, meter_events, meters
from billing_pipeline.rules.model import Meter, MeterSpec

MODES = {True: "live", False: "test"}


def bind(
    writer: Writer, account_id: str | None, livemode: bool, found: Iterable[Meter], now: datetime
) -> None:
    """The account guard: remember account, mode and meters, or refuse others.

    `account_id` is None if the key may not read its account. The ids of the meters then tell: each
    belongs to one account for ever. Raises ConfigurationError on any difference.
    """
    found = list(found)
    connection = writer.connection
    guard(connection, account_id, livemode, found)
    known = {} if account_id is None else {"account_id": account_id}
    upsert(connection, account, {"id": 1}, {"livemode": livemode, "seen_at": now, **known})
    for meter in found:
        row = {
            "meter_id": meter.meter_id,
            "formula": meter.formula,
            "event_time_window": meter.event_time_window,
            "customer_key": meter.customer_key,
            "value_key": meter.value_key,
            "changed_at": meter.changed_at,
            "seen_at": now,
        }
        upsert(connection, meters, {"event_name": meter.event_name}, row)


def guard(
    connection: Connection, account_id: str | None, livemode: bool, found: Iterable[Meter]
) -> None:
    """Raise ConfigurationError for another account or mode, or for a meter that was made again."""
    bound = connection.execute(select(account)).one_or_none()
    if bound is not None:
        _refuse_another(bound, account_id, livemode)
    known = {row.event_name: row.meter_id for row in connection.execute(select(meters))}
    for meter in found:
        earlier = known.get(meter.event_name, meter.meter_id)
        sent = select(meter_events.c.id).where(
            meter_events.c.event_name == meter.event_name,
            meter_events.c.first_attempt_at.is_not(None),
        )
        if earlier != meter.meter_id and connection.execute(sent.limit(1)).first():
            raise ConfigurationError(
                f"the meter {meter.event_name} is {meter.meter_id} in Stripe, but this ledger "
                f"reported usage to {earlier}: another account, or a meter that was made again. "
                "Use a ledger of its own (BILLING_DATABASE_URL)."
            )


def _refuse_another(bound: Row[Any], account_id: str | None, livemode: bool) -> None:
    if bound.livemode != livemode:
        raise ConfigurationError(
            f"this ledger belongs to {MODES[bound.livemode]} mode, the key is a {MODES[livemode]} "
            "key. Use the other key, or a ledger of its own (BILLING_DATABASE_URL)."
        )
    if None not in (bound.account_id, account_id) and bound.account_id != account_id:
        raise ConfigurationError(
            f"this ledger belongs to the Stripe account {bound.account_id}, the key belongs to "
            f"{account_id}. Use the other key, or a ledger of its own (BILLING_DATABASE_URL)."
        )


def not_for_us(
    connection: Connection, livemode: bool, account_id: str | None, key_is_live: bool
) -> str | None:
    """Why an event of this mode and account does not concern this ledger; None if it does.

    Before its first contact with Stripe a ledger belongs to the mode of its key (`key_is_live`).
    """
    bound = connection.execute(select(account)).one_or_none()
    ours = key_is_live if bound is None else bound.livemode
    if livemode != ours:
        return f"an event of {MODES[livemode]} mode; this ledger belongs to {MODES[ours]} mode"
    if account_id is not None and (bound is None or bound.account_id != account_id):
        return f"an event of the connected account {account_id}"
    return None


def known_meters(connection: Connection, specs: Iterable[MeterSpec]) -> list[Meter]:
    """The meters as last seen in Stripe; as configured if they were never seen."""
    known = {row.event_name: row for row in connection.execute(select(meters))}
    found = []
    for spec in specs:
        row = known.get(spec.event_name)
        if row is None or row.formula != spec.formula:
            found.append(Meter(spec.event_name, spec.formula, spec.measure))
        else:
            found.append(meter_of(row, spec.measure))
    return found


def meter_changed_at(writer: Writer, meter_id: str, at: datetime) -> bool:
    """Remember when Stripe last changed a meter; False if it is not one of ours."""
    connection, instant = writer.connection, int(at.timestamp())
    connection.execute(
        update(meters)
        .where(meters.c.meter_id == meter_id, func.coalesce(meters.c.changed_at, 0) < instant)
        .values(changed_at=instant)
    )
    ours = select(meters.c.event_name).where(meters.c.meter_id == meter_id)
    return connection.execute(ours).first() is not None


def bound_account(connection: Connection) -> dict[str, Any] | None:
    """The account and mode of this ledger; None before its first contact with Stripe."""
    row = connection.execute(select(account)).one_or_none()
    return row_as_json(dict(row._mapping)) if row else None
