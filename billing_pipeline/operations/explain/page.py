"""An explanation as one HTML file: no script, no link to anywhere, ready to be sent or printed."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from billing_pipeline.errors import ConfigurationError


def _instant(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def write_page(path: Path, document: dict[str, Any], made_at: str) -> None:
    """Write an explained day or period to a file. Raises ConfigurationError if that cannot be."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals |= {"headline": headline, "instant": _instant}
    template = (resources.files(__package__) / "page.html").read_text("utf-8")
    days = document["days"] if "lines" in document else [document]
    text = environment.from_string(template).render(
        document=document,
        span=document.get("period") or document["day"],
        days=days,
        lines=document.get("lines", []),
        made_at=made_at,
    )
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None


def headline(line: dict[str, Any]) -> str:
    """A line of a period in words."""
    if line["invoiced"] is not None and line["invoice"]:
        return f"{line['meter']}: the invoice bills {line['invoiced']}"
    return f"{line['meter']}: {line['ledger']} reported so far"
