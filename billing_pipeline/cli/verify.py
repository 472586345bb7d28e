"""`billing verify`: compare what was reported with Stripe's summaries."""

from typing import Annotated

import typer

from billing_pipeline.cli import report
from billing_pipeline.cli.context import open_days
from billing_pipeline.cli.options import From, Json, To
from billing_pipeline.cli.output import answer, progress


def verify(
    first: From,
    last: To,
    wait: Annotated[float, typer.Option(help="Seconds to wait for summaries that lag.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Compare everything reported for these days with Stripe's meter event summaries."""
    from billing_pipeline.operations.bill import verify_days

    context, days = open_days(first, last, needs_key=True)
    with progress() as watch:
        found = verify_days(context, days, wait_seconds=wait, everything=True, progress=watch)
    document = {
        **report.reported_document(context, days, found),
        "verified_share": found.share,
        "compared": found.agreed + found.lagging + len(found.mismatched),
    }
    compared = f"Compared {document['compared']} figures: {found.agreed} agree."
    parts = [compared, *report.reported_parts(document)]
    answer(as_json, document, parts, needs_person=report.needs_person(document))
