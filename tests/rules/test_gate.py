"""The gate: which counts are implausible, by example and by property."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.rules.gate import Gates, implausible
from billing_pipeline.rules.model import Usage

GATES = Gates()


def day(**readings: int) -> dict[str, Usage]:
    return {name: Usage(1, count) for name, count in readings.items()}


WEEKS = [day(big=500, small=20)] * 14


def closed(usage: dict[str, Usage], recent: list[dict[str, Usage]] = WEEKS) -> set[str | None]:
    return {finding.organization_id for finding in implausible(usage, recent, GATES)}


def test_an_outage_closes_the_gate_for_everybody() -> None:
    assert None in closed({})
    assert None in closed(day(big=100, small=20))
    [first, *_] = implausible({}, WEEKS, GATES)
    assert first.text == "0 readings where 520 are usual, all organizations together"


def test_an_ordinary_day_passes() -> None:
    assert closed(day(big=500, small=20)) == set()
    assert closed(day(big=400)) == set()  # a small organization is not judged
    assert closed(day(big=700, new=300)) == set()


def test_many_times_the_usual_waits_too() -> None:
    assert closed(day(big=5_100, small=20)) == {None, "big"}


def test_one_organization_waits_without_the_others() -> None:
    recent = [day(a=400, b=400, c=400)] * 7
    assert closed(day(a=0, b=400, c=400), recent) == {"a"}
    assert closed(day(b=400, c=400), recent) == {"a"}


def test_organizations_that_vanish_are_seen_though_the_readings_are_not_few() -> None:
    recent = [day(a=900, b=10, c=10, d=10)] * 7
    assert closed(day(a=900), recent) == {None}


def test_without_a_week_of_days_there_is_nothing_to_compare_with() -> None:
    assert closed({}, WEEKS[:6]) == set()
    assert implausible({}, WEEKS, Gates(enabled=False)) == []


counts = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10**6), max_size=4)


@given(counts)
def test_the_same_day_again_is_always_plausible(readings: dict[str, int]) -> None:
    usage = day(**readings)
    assert implausible(usage, [usage] * 10, GATES) == []
