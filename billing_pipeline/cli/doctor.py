"""`billing doctor` and `billing migrate`: the configuration, and the database schema."""

from rich.console import RenderableType

from billing_pipeline.cli.context import open_context
from billing_pipeline.cli.options import Json
from billing_pipeline.cli.output import answer, labelled, table


def doctor(as_json: Json = False) -> None:
    """Show the resolved configuration, with secrets masked, and check each part of it."""
    from billing_pipeline.operations.doctor import examine
    from billing_pipeline.settings import load_settings

    settings = load_settings()
    checks, shown = examine(settings), settings.masked()
    rows = [{"variable": name, "value": value} for name, value in shown.items()]
    parts: list[RenderableType] = [table(rows, "variable", "value", title="Configuration")]
    for check in checks:
        parts.append(labelled(f"{'ok  ' if check.ok else 'no  '}{check.name}", check.detail,
                              "green" if check.ok else "red"))  # fmt: skip
    document = {"settings": shown, "checks": [vars(check) for check in checks]}
    code = max((check.exit_code for check in checks if not check.ok), default=0)
    answer(as_json, document, parts, exit_code=code)


def migrate(as_json: Json = False) -> None:
    """Upgrade the database schema. Every command that opens the database does this, too."""
    shown = open_context().settings.masked()["BILLING_DATABASE_URL"]
    answer(as_json, {"database": shown}, [f"The schema of {shown} is up to date."])
