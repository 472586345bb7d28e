"""`billing events`: the Stripe events that the webhook handler stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.json import JSON

from billing_pipeline.cli.context import open_context
from billing_pipeline.cli.options import Json
from billing_pipeline.cli.output import Document, answer, labelled, table

if TYPE_CHECKING:
    from billing_pipeline.stripe_events.inbox import EventState

app = typer.Typer(no_args_is_help=True, help="Stripe events that the webhook handler stored.")

OfType = Annotated[str | None, typer.Option("--type", help="Event type, such as invoice.created.")]
InState = Annotated[
    str | None, typer.Option("--state", help="received, processed, ignored or failed.")
]


def _state(text: str | None) -> EventState | None:
    from billing_pipeline.stripe_events.inbox import EventState

    if text is not None and text not in list(EventState):
        raise typer.BadParameter(f"{text!r} is not a state; use one of {', '.join(EventState)}")
    return None if text is None else EventState(text)


@app.command("list")
def list_events(
    type: OfType = None,
    state: InState = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of events to show.")] = 50,
    as_json: Json = False,
) -> None:
    """List stored events, newest first, and what became of each."""
    inbox = open_context().inbox
    counts, events = inbox.counts(), inbox.records(type=type, state=_state(state), limit=limit)
    columns = ("created", "id", "type", "state", "attempts", "last_error")
    totals = ", ".join(f"{number} {name}" for name, number in counts.items())
    answer(as_json, {"counts": counts, "events": events}, [table(events, *columns), totals])


@app.command()
def show(
    event_id: Annotated[str, typer.Argument(help="Event id (evt_…).")], as_json: Json = False
) -> None:
    """Show one stored event, with its payload."""
    found = open_context().inbox.records(ids=[event_id])
    if not found:
        raise typer.BadParameter(f"no event {event_id} is stored")
    answer(as_json, found[0], [JSON.from_data(found[0], default=str)])


@app.command()
def replay(
    event_ids: Annotated[list[str] | None, typer.Argument(help="Events to apply again.")] = None,
    type: OfType = None,
    state: InState = None,
    as_json: Json = False,
) -> None:
    """Apply stored events again: by id, by type or by state."""
    from billing_pipeline.operations.bill import apply_events

    ids = event_ids or []
    if not ids and type is None and state is None:
        raise typer.BadParameter("name events, a --type or a --state")
    context = open_context()
    replayed = context.inbox.replay(ids, type, _state(state))
    stored = context.inbox.records(ids=ids or [""], limit=len(ids) + 1)
    unknown = sorted(set(ids) - {row["id"] for row in stored})
    applied = apply_events(context)
    document = {"replayed": replayed, "unknown": unknown, **vars(applied)}
    wrong = unknown or applied.postponed or applied.failed
    answer(as_json, document, _parts(document), needs_person=wrong)


def _parts(document: Document) -> Iterator[RenderableType]:
    done = f"{len(document['processed'])} processed, {len(document['ignored'])} ignored"
    yield f"{len(document['replayed'])} events to apply again: {done}."
    errors = document["postponed"] | document["failed"]
    errors |= dict.fromkeys(document["unknown"], "no such event is stored")
    yield from (labelled(id, error) for id, error in errors.items())
