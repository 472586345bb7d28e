"""The `webhook-handler` command: migrations first, then uvicorn with its workers.

Each worker creates its own application (`make_app`), so that no connection is shared by processes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Annotated, Any, NoReturn

import typer
import uvicorn
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette

from webhook_handler.database import DatabaseUnusable, make_engine, migrate
from webhook_handler.settings import ConfigurationError, WebhookSettings, load_settings

GRACE_SECONDS = 15
"""How long a shutdown waits for accepted requests: longer than storing an event may take."""

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(levelname)s %(name)s %(process)d %(message)s",
            "rename_fields": {"timestamp": "time", "levelname": "level", "message": "event"},
            "timestamp": True,  # UTC
        }
    },
    "handlers": {
        "out": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stdout"}
    },
    "root": {"handlers": ["out"], "level": "INFO"},
    "loggers": {
        "alembic": {"level": "WARNING"},
        "uvicorn": {"handlers": [], "propagate": True},
        "uvicorn.error": {"handlers": [], "propagate": True},
    },
}

command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def make_app() -> Starlette:
    """The application of one worker, configured by the environment. Raises ConfigurationError."""
    from webhook_handler.app import STORE_SECONDS, THREADS, WebhookApp
    from webhook_handler.store import EventStore

    settings = load_settings()
    engine = make_engine(
        settings.billing_database_url.get_secret_value(),
        lock_timeout=STORE_SECONDS,
        statement_timeout=STORE_SECONDS,
        pool_size=THREADS,
    )
    return WebhookApp(EventStore(engine), settings.secrets()).starlette()


@command.callback(invoke_without_command=True)
def serve(
    context: typer.Context,
    host: Annotated[str, typer.Option(envvar="WEBHOOK_HOST", help="Address to listen on.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(envvar="WEBHOOK_PORT", help="Port.")] = 8400,
    workers: Annotated[
        int, typer.Option(envvar="WEBHOOK_WORKERS", min=1, help="Worker processes.")
    ] = 1,
) -> None:
    """Receive Stripe's webhooks at POST /stripe/webhook until interrupted.

    Needs STRIPE_WEBHOOK_SECRET (several, separated by commas) and BILLING_DATABASE_URL.
    """
    if context.invoked_subcommand is not None:
        return
    _prepare(load_settings())
    with tempfile.TemporaryDirectory(prefix="webhook-handler-") as counters:
        # This must be set before prometheus_client is imported, which reads it then.
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", counters)
        uvicorn.run(
            "webhook_handler.server:make_app",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            log_config=LOGGING,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )


@command.command("migrate")
def migrate_only() -> None:
    """Upgrade the database's schema and exit. Serving does this, too."""
    _prepare(load_settings())
    typer.echo("The event records have the newest schema.")


def _prepare(settings: WebhookSettings) -> None:
    try:
        engine = make_engine(settings.billing_database_url.get_secret_value())
        migrate(engine)
        engine.dispose()
    except DatabaseUnusable as error:
        raise ConfigurationError(str(error)) from None
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise ConfigurationError(f"the database cannot be used: {cause}") from None


def main() -> NoReturn:
    """The console script."""
    try:
        sys.exit(command(standalone_mode=False) or 0)
    except typer.TyperException as error:
        _fail(error.format_message())
    except ConfigurationError as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
