"""What the online store could know at an instant: the events that were visible by then."""

from collections.abc import Iterable, Mapping

from tests.oracle.meaning import OracleEvent


def served(events: Iterable[OracleEvent], visible: Mapping[tuple[int, int], int | None], at: int) -> list[OracleEvent]:
    """The events that had become visible at `at` or before. `visible` has the instant of each, by source partition and
    offset, None where it never did; whether an event had happened by then is for the rule of values to say."""
    known = []
    for event in events:
        when = visible[event["partition"], event["offset"]]
        if when is not None and when <= at:
            known.append(event)
    return known
