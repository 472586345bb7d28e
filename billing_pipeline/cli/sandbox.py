"""`billing sandbox`: a local Stripe, and sample readings."""

import os
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from billing_pipeline.cli.options import Json, a_day
from billing_pipeline.cli.output import answer, print_answer

app = typer.Typer(no_args_is_help=True, help="A local Stripe, and sample readings.")


@app.command()
def serve(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 picks a free one.")] = 12111,
    seed: Annotated[int, typer.Option(help="Seed that decides which requests fail.")] = 0,
    faults: Annotated[
        str, typer.Option(help='Faults, such as "rate_limit=0.1,cut_after=0.05,lag=2".')
    ] = "",
    now: Annotated[str | None, typer.Option(help="Start of the clock, ISO 8601.")] = None,
    state: Annotated[Path | None, typer.Option(help="File that keeps the state.")] = None,
    account: Annotated[str, typer.Option(help="Account id.")] = "acct_sandbox",
    webhook: Annotated[
        str | None, typer.Option(help="Deliver events to this URL, signed with --webhook-secret.")
    ] = None,
    webhook_secret: Annotated[
        str, typer.Option(help="Secret that signs events; give it to the webhook handler, too.")
    ] = "whsec_sandbox",
    as_json: Json = False,
) -> None:
    """Serve a local Stripe until interrupted. Every sk_test_… key works."""
    from billing_pipeline.errors import ConfigurationError
    from billing_pipeline.sandbox.app import make_app
    from billing_pipeline.sandbox.faults import Faults
    from billing_pipeline.sandbox.server import HOST, listen, make_sandbox, make_server
    from billing_pipeline.sandbox.webhooks import Endpoint

    try:
        parsed = Faults.parse(faults)
        start = datetime.fromisoformat(now) if now else None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if start is not None and start.tzinfo is None:
        raise typer.BadParameter("--now needs a time zone, such as 2026-01-01T00:00:00Z")
    sandbox = make_sandbox(faults=parsed, seed=seed, now=start, state=state, account_id=account)
    if webhook is not None:
        sandbox.webhooks.endpoint = Endpoint(webhook, webhook_secret, webhook_secret)
    try:
        listener = listen(port)
    except OSError as error:
        raise ConfigurationError(
            f"port {port} cannot be used ({error.strerror})", "Choose another --port, or 0."
        ) from None
    with listener:
        base = f"http://{HOST}:{listener.getsockname()[1]}"
        text = (
            f"A local Stripe runs at {base}. Use it with\n"
            f"  export STRIPE_API_BASE={base}\n"
            "  export STRIPE_SECRET_KEY=sk_test_sandbox\n"
            "and create customers with\n"
            f"  curl -u sk_test_sandbox: {base}/v1/customers -d name=acme"
        )
        print_answer(as_json, {"base": base, "account": account, "pid": os.getpid()}, [text])
        make_server(make_app(sandbox), listener.getsockname()[1]).run([listener])


@app.command("load-sample")
def load_sample(
    to: Annotated[
        Path | None, typer.Option(help="Folder to write to.", show_default="BILLING_READINGS_URI")
    ] = None,
    last_day: Annotated[
        date | None,
        typer.Option(
            "--last-day", parser=a_day, metavar="DAY", help="Last UTC day.",
            show_default="yesterday",
        ),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write real sensor readings (Birmingham car parks) as daily Parquet files."""
    from billing_pipeline.sandbox import sample
    from billing_pipeline.settings import load_settings

    folder = to or Path(load_settings().billing_readings_uri)
    end = last_day or datetime.now(UTC).date() - timedelta(days=1)
    days, rows = sample.load_sample(folder, end)
    document = {"folder": str(folder), "days": days, "rows": rows, "last_day": end.isoformat()}
    text = (
        f"Wrote {rows} readings of {days} days, up to {end}, to {folder}.\n"
        "Source: Birmingham City Council, Open Government Licence v3.0."
    )
    answer(as_json, document, [text])
