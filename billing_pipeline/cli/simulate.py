"""`billing simulate`: bill in simulated worlds full of faults and crashes."""

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from billing_pipeline.cli.options import Json
from billing_pipeline.cli.output import Document, answer, labelled, progress


def simulate(
    seeds: Annotated[str, typer.Option(help="A seed, or an inclusive range A..B.")] = "1..100",
    processes: Annotated[int, typer.Option(min=1, help="Worlds to simulate in parallel.")] = (
        os.cpu_count() or 1
    ),
    as_json: Json = False,
) -> None:
    """Bill in simulated worlds full of faults and crashes. The same seed gives the same world."""
    from billing_pipeline.simulation.runner import shorten, simulate_all

    first, _, last = seeds.partition("..")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise typer.BadParameter(f"{seeds!r} is not a seed, nor a range such as 1..100")
    chosen = range(int(first), int(last or first) + 1)
    with progress() as watch:
        verdicts = simulate_all(chosen, processes, lambda n: watch("simulating", n, len(chosen)))
    failed = [verdict for verdict in verdicts if verdict.complaints]
    document: dict[str, Any] = {
        "seeds": len(chosen),
        "crashes": sum(verdict.crashes for verdict in verdicts),
        "failed": [{"seed": v.seed, "complaints": v.complaints} for v in failed],
    }
    if failed:
        _, shortest = shorten(failed[0].seed)
        document["history"] = shortest.log
        document["complaints"] = shortest.complaints
        document["replay"] = f"billing simulate --seeds {failed[0].seed}"
    answer(as_json, document, _parts(document), needs_person=failed)


def _parts(document: Document) -> Iterator[RenderableType]:
    failed = [str(each["seed"]) for each in document["failed"]]
    yield f"{document['seeds']} worlds with {document['crashes']} crashes: {len(failed)} failed."
    if failed:
        yield f"Failed seeds: {', '.join(failed)}. The first, with its history made short:"
        yield from (f"  {line}" for line in document["history"])
        yield from (labelled("  wrong", complaint) for complaint in document["complaints"])
        yield f"Replay it with `{document['replay']}`."
