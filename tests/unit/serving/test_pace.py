"""What a limit of concurrency follows from: work done in the time that the processor was wanted."""

import math
import time
from pathlib import Path

import pytest

from featurestore.serving import pace
from featurestore.serving.pace import limit_of, wanted_seconds


def test_as_much_may_run_as_is_done_in_time() -> None:
    assert limit_of(done=1_000, wanted=0.2, passed=0.2, within=0.025) == 125
    assert limit_of(done=10, wanted=0.2, passed=0.2, within=0.025) == 1.25


def test_a_processor_that_was_not_wanted_is_not_what_work_waits_for() -> None:
    """As while Redis is slow: little gets done, and fewer at a time would get less done."""
    assert limit_of(done=10, wanted=0.05, passed=0.2, within=0.025) == math.inf


@pytest.mark.parametrize("linux", [True, False])
def test_work_wants_the_processor_and_sleep_does_not(linux: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not linux:
        monkeypatch.setattr(pace, "_SCHEDSTAT", Path("/proc/there is no such file"))
    began = wanted_seconds()
    ended = time.thread_time() + 0.05
    while time.thread_time() < ended:
        pass
    worked = wanted_seconds()
    time.sleep(0.5)

    assert worked - began >= 0.04
    assert wanted_seconds() - worked < 0.45
