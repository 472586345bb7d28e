"""The read model does not depend on the order in which Stripe's events arrive."""

from __future__ import annotations

import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from billing_pipeline.customers.directory import CustomerDirectory
from billing_pipeline.customers.objects import (
    CheckoutObject,
    CustomerObject,
    InvoiceObject,
    SubscriptionObject,
)
from billing_pipeline.customers.read_model import (
    AskStripe,
    Source,
    take_checkout,
    take_deleted_customer,
    take_invoice,
    take_subscription,
)
from billing_pipeline.customers.tables import (
    billing_periods,
    customers,
    deleted_customers,
    invoices,
    learned_customers,
    subscriptions,
)
from billing_pipeline.database import open_database, writing
from billing_pipeline.rules.eligibility import DEFAULT_POLICY
from billing_pipeline.rules.holds import HoldReason

BEGUN = datetime(2026, 3, 1, tzinfo=UTC)
TABLES = (learned_customers, deleted_customers, subscriptions, billing_periods, invoices)
STATUSES = ["incomplete", "active", "past_due", "paused", "napping", "canceled"]
INVOICE_STATUSES = ["draft", "open", "paid", "void"]


def unix(seconds: int) -> int:
    return int(BEGUN.timestamp()) + seconds


def a_history(seed: int) -> tuple[list[dict[str, Any]], dict[tuple[str, str], dict[str, Any]]]:
    """Events of a few objects as Stripe makes them, often several in a second; and each object as
    it is at the end."""
    chance = random.Random(seed)
    now = 0
    events: list[dict[str, Any]] = []
    objects: dict[tuple[str, str], dict[str, Any]] = {}
    number = itertools.count(1)

    def emit(kind: str, content: dict[str, Any]) -> None:
        events.append(
            {"id": f"evt_{next(number)}", "kind": kind, "at": now, "object": dict(content)}
        )

    for _ in range(chance.randint(1, 25)):
        now += chance.choice([0, 0, 0, 1, 60])
        what = chance.choice(["subscription"] * 4 + ["invoice"] * 3 + ["checkout", "deleted"])
        which = chance.randint(1, 2)
        if what == "subscription":
            start = unix(86_400 * chance.randint(0, 3))
            known = objects.setdefault(
                ("subscriptions", f"sub_{which}"),
                {"id": f"sub_{which}", "customer": f"cus_{which}", "start_date": unix(0)},
            )
            known |= {
                "status": chance.choice(STATUSES),
                "ended_at": now + unix(0) if chance.random() < 0.2 else None,
                "metadata": {"organization_id": f"org-{which}"} if chance.random() < 0.5 else {},
                "items": {
                    "data": [
                        {
                            "price": {"id": f"price_{chance.randint(1, 2)}"},
                            "current_period_start": start,
                            "current_period_end": start + chance.choice([86_400, 172_800]),
                        }
                    ]
                },
            }
            emit("subscription", known)
        elif what == "invoice":
            key = ("invoices", f"in_{which}")
            known = objects.setdefault(
                key,
                {"id": f"in_{which}", "customer": f"cus_{which}", "subscription": f"sub_{which}",
                 "status": "draft", "period_start": unix(0), "period_end": unix(86_400),
                 "attempt_count": 0},
            )  # fmt: skip
            step = INVOICE_STATUSES.index(known["status"])
            known["status"] = chance.choice(INVOICE_STATUSES[step:])
            known["attempt_count"] += chance.choice([0, 1])
            emit("invoice", known)
        elif what == "checkout":
            organization = f"org-{chance.randint(1, 2)}"
            session = {"id": "cs", "customer": f"cus_{which}", "client_reference_id": organization}
            emit("checkout", session)
        else:
            emit("deleted", {"id": f"cus_{which}"})
    return events, objects


def apply(
    engine: Engine, event: dict[str, Any], objects: dict[tuple[str, str], dict[str, Any]]
) -> None:
    source = Source(event["id"], BEGUN + timedelta(seconds=event["at"]))

    def take(asked: dict[str, Any] | None) -> None:
        with writing(engine) as connection:
            match event["kind"]:
                case "subscription":
                    seen = SubscriptionObject.model_validate(event["object"])
                    answer = None if asked is None else SubscriptionObject.model_validate(asked)
                    take_subscription(connection, seen, source, answer)
                case "invoice":
                    bill = InvoiceObject.model_validate(event["object"])
                    now = None if asked is None else InvoiceObject.model_validate(asked)
                    take_invoice(connection, bill, source, now)
                case "checkout":
                    take_checkout(
                        connection, CheckoutObject.model_validate(event["object"]), source
                    )
                case _:
                    gone = CustomerObject.model_validate(event["object"])
                    take_deleted_customer(connection, gone, source)

    try:
        take(None)
    except AskStripe as question:
        take(objects[question.kind, question.object_id])


def state(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    """The read model, without the events that it remembers as its sources."""
    found = {}
    with engine.begin() as connection:
        for table in TABLES:
            rows = [dict(row._mapping) for row in connection.execute(select(table))]
            for row in rows:
                row.pop("event_id", None)
                row.pop("learned_at", None)
            found[table.name] = sorted(rows, key=repr)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Engine]:
    folder = tmp_path_factory.mktemp("orders")
    return [open_database(f"sqlite:///{folder}/{name}.db") for name in ("one", "two")]


def forget(engine: Engine) -> None:
    with writing(engine) as connection:
        for table in (*TABLES, customers):
            connection.execute(table.delete())


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), data=st.data())
def test_any_order_and_repetition_of_events_ends_in_the_state_that_stripe_has(
    two: list[Engine], seed: int, data: st.DataObject
) -> None:
    events, objects = a_history(seed)
    order = data.draw(st.permutations(events))
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=5))
    for engine, arriving in zip(two, (events, [*order, *repeated]), strict=True):
        forget(engine)
        for event in arriving:
            apply(engine, event, objects)
    in_order, in_any_order = map(state, two)
    assert in_any_order == in_order
    # And both are what Stripe itself would show.
    for row in in_any_order["subscriptions"]:
        assert row["status"] == objects["subscriptions", row["subscription_id"]]["status"]
    for row in in_any_order["invoices"]:
        assert row["status"] == objects["invoices", row["invoice_id"]]["status"]


def a_subscription(status: str, **more: Any) -> dict[str, Any]:
    return {"id": "sub_1", "customer": "cus_1", "status": status, "start_date": unix(0), **more}


def subscribe(engine: Engine, status: str, at: int, id: str, **more: Any) -> None:
    event = {"id": id, "kind": "subscription", "at": at, "object": a_subscription(status, **more)}
    apply(engine, event, {})


def test_an_old_update_never_revives_a_cancelled_subscription(engine: Engine) -> None:
    subscribe(engine, "canceled", 20, "evt_2", ended_at=unix(20))
    subscribe(engine, "active", 10, "evt_1")
    eligibility = CustomerDirectory(engine).payers(DEFAULT_POLICY).eligibility_of("cus_1")
    assert eligibility.hold_reason(None, unix(20)) == HoldReason.SUBSCRIPTION_ENDED
    assert eligibility.hold_reason(None, unix(19)) is None


def test_two_events_of_one_second_that_differ_make_us_ask_stripe(engine: Engine) -> None:
    subscribe(engine, "active", 10, "evt_1")
    with writing(engine) as connection, pytest.raises(AskStripe):
        take_subscription(
            connection,
            SubscriptionObject.model_validate(a_subscription("paused")),
            Source("evt_2", BEGUN + timedelta(seconds=10)),
        )
    subscribe(engine, "active", 10, "evt_3")  # the same content: nothing to ask


def test_periods_of_old_and_of_new_events_are_all_remembered(engine: Engine) -> None:
    for at, start in ((20, 200), (10, 100)):
        items = {"data": [{"current_period_start": unix(start), "current_period_end": unix(300)}]}
        subscribe(engine, "active", at, f"evt_{at}", items=items)
    listed = CustomerDirectory(engine).subscriptions_of({"cus_1"})["cus_1"]
    assert len(listed[0]["periods"]) == 2


def checkout(engine: Engine, organization: str, customer: str, id: str) -> None:
    session = {"id": "cs", "customer": customer, "client_reference_id": organization}
    apply(engine, {"id": id, "kind": "checkout", "at": 0, "object": session}, {})


def test_an_organization_with_two_learned_customers_waits_for_a_person(
    engine: Engine, tmp_path: Any
) -> None:
    directory = CustomerDirectory(engine)
    checkout(engine, "org", "cus_1", "evt_1")
    assert directory.mapping() == {"org": "cus_1"}
    checkout(engine, "org", "cus_2", "evt_2")
    assert directory.mapping() == {}
    assert directory.payers(DEFAULT_POLICY).undecided == {"org"}
    assert "cus_1, cus_2" in directory.known().contradictions()[0]
    file = tmp_path / "customers.csv"
    file.write_text("organization_id,stripe_customer_id\norg,cus_2\n")
    directory.import_file(file, BEGUN)
    assert directory.mapping() == {"org": "cus_2"}
    assert directory.payers(DEFAULT_POLICY).undecided == frozenset()


def test_an_imported_mapping_wins_and_the_contradiction_is_shown(
    engine: Engine, tmp_path: Any
) -> None:
    directory = CustomerDirectory(engine)
    file = tmp_path / "customers.csv"
    file.write_text("organization_id,stripe_customer_id\norg,cus_person\n")
    checkout(engine, "org", "cus_event", "evt_1")
    assert directory.mapping(file) == {"org": "cus_person"}
    assert "imported as cus_person" in directory.known(file).contradictions()[0]
    directory.import_file(file, BEGUN)
    assert directory.mapping() == {"org": "cus_person"}
    assert len(directory.known().contradictions()) == 1


def test_the_deletion_of_one_of_two_learned_customers_decides(engine: Engine) -> None:
    directory = CustomerDirectory(engine)
    checkout(engine, "org", "cus_1", "evt_1")
    checkout(engine, "org", "cus_2", "evt_2")
    apply(engine, {"id": "evt_3", "kind": "deleted", "at": 5, "object": {"id": "cus_1"}}, {})
    assert directory.mapping() == {"org": "cus_2"}
    apply(engine, {"id": "evt_4", "kind": "deleted", "at": 5, "object": {"id": "cus_2"}}, {})
    eligibility = directory.payers(DEFAULT_POLICY).eligibility_of("cus_2")
    assert eligibility.hold_reason(None, unix(0)) == HoldReason.CUSTOMER_DELETED


def test_a_checkout_that_names_two_organizations_is_an_error_not_a_guess() -> None:
    session = CheckoutObject(
        id="cs", client_reference_id="one", metadata={"organization_id": "two"}
    )
    with pytest.raises(ValueError, match="two organizations"):
        _ = session.organization_id


@pytest.mark.parametrize(
    ("shape", "meters"),
    [
        ([], None),
        ([{"price": {"id": "p"}}], None),
        ([{"price": {"id": "p", "recurring": {"usage_type": "licensed"}}}], frozenset()),
        ([{"price": {"id": "p", "recurring": {"usage_type": "metered"}}}], None),
        (
            [{"price": {"id": "p", "recurring": {"usage_type": "metered", "meter": "mtr_1"}}},
             {"price": {"id": "q", "recurring": {"usage_type": "licensed", "meter": None}}}],
            frozenset({"mtr_1"}),
        ),
    ],
)  # fmt: skip
def test_the_meters_of_a_subscription_are_known_only_if_its_items_name_them(
    shape: list[Any], meters: frozenset[str] | None
) -> None:
    seen = SubscriptionObject.model_validate(a_subscription("active", items={"data": shape}))
    assert seen.meters == meters


def test_old_and_new_shapes_of_periods_and_invoices_are_read() -> None:
    old = SubscriptionObject.model_validate(
        a_subscription("active", current_period_start=1, current_period_end=2)
    )
    assert old.periods == {(1, 2)}
    bill = {"id": "in", "customer": {"id": "cus"}, "status": "draft", "period_start": 1,
            "period_end": 2}  # fmt: skip
    assert InvoiceObject.model_validate({**bill, "subscription": "sub"}).subscription_id == "sub"
    parent = {"subscription_details": {"subscription": "sub_new"}}
    assert InvoiceObject.model_validate({**bill, "parent": parent}).subscription_id == "sub_new"
    assert InvoiceObject.model_validate(bill).subscription_id is None
