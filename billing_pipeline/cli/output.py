"""The answer of a command: one JSON document, or tables for people; then the exit code."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console, Group, RenderableType
from rich.json import JSON
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

# Ids come from other people's files: nothing in them is markup.
out = Console(markup=False, highlight=False)
err = Console(stderr=True, markup=False, highlight=False)

NUMBER = re.compile(r"[+-]?[\d.e+]+|–")
SIGNED = {"amount", "difference"}
NEVER_WRAPPED = {"id", "type"}
"""Columns that people copy from."""
SHOWN_ROWS = 20

Document = Mapping[str, Any]


def answer(
    as_json: bool,
    document: Document,
    parts: Iterable[RenderableType],
    *,
    needs_person: object = False,
    exit_code: int = 0,
) -> NoReturn:
    """Print a command's answer, and end it: with 1 if something needs a person."""
    print_answer(as_json, document, parts)
    raise typer.Exit(exit_code or (1 if needs_person else 0))


def print_answer(as_json: bool, document: Document, parts: Iterable[RenderableType]) -> None:
    """Print the document, or for people its parts, and go on."""
    if as_json:
        print(json.dumps(document, ensure_ascii=False, default=str), flush=True)
        return
    for part in parts:  # lines stay whole, so that people can copy commands from them
        out.print(part, soft_wrap=isinstance(part, str | Text | JSON))


def table(rows: Iterable[Document], *columns: str, title: str | None = None) -> Table:
    """These columns of a document's rows. Numbers are aligned to the right."""
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    made = Table(title=title)
    for n, column in enumerate(columns):
        is_number = all(NUMBER.fullmatch(str(row[n])) for row in cells)
        made.add_column(
            column.removesuffix("_id").replace("_", " ").replace("stripe", "Stripe"),
            justify="right" if is_number else "left",
            no_wrap=column in NEVER_WRAPPED,
        )
    for row in cells:
        made.add_row(*row)
    return made


def _cell(column: str, value: Any) -> str | Text:
    if isinstance(value, Text):
        return value
    if value is None:
        return "(all)" if column == "organization_id" else "–"
    if column in SIGNED:
        return f"{value:+g}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def attention_panel(
    title: str, rows: Sequence[Document], columns: Sequence[str], advice: str
) -> Iterator[RenderableType]:
    """What needs a person, and what to do about it; nothing if there are no rows."""
    if rows:
        hidden = len(rows) - SHOWN_ROWS
        more = f"… and {hidden} more (see --json)\n" if hidden > 0 else ""
        content = Group(table(rows[:SHOWN_ROWS], *columns), more + advice)
        yield Panel(content, title=f"{title} ({len(rows)})", border_style="yellow")


def labelled(label: object, message: str, color: str = "red") -> Text:
    """A line with a colored label."""
    return Text.assemble((f"{label}: ", color), message)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on standard error if a person watches, silence otherwise."""
    if not err.is_terminal:
        yield lambda what, done, total: None
        return
    from rich import progress as bars

    columns = (bars.TextColumn("{task.description:<12}"), bars.BarColumn(),
               bars.MofNCompleteColumn(), bars.TimeElapsedColumn())  # fmt: skip
    with bars.Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, bars.TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield update
