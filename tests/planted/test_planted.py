"""The net is only as good as what it catches: bugs that are planted on purpose must not get through."""

import pytest

from tests.planted.planting import ROOT, SIMULATION, apply, bugs, hunt


def test_every_patch_fits_the_code_as_it_is_now() -> None:
    assert len(bugs()) >= 15
    for bug in bugs():
        apply(bug, ROOT, pretend=True)
        assert bug.what
        if bug.catch != SIMULATION:
            file, _, test = bug.catch.partition("::")
            assert f"def {test}(" in (ROOT / file).read_text(), bug.catch


# Those that the fewest schedules show; `python -m tests.planted` hunts them all.
@pytest.mark.parametrize("name", ["resume_one_too_far", "lake_trimmed_one_short", "applied_offset_not_asked"])
def test_a_planted_bug_is_caught(name: str) -> None:
    [bug] = [bug for bug in bugs() if bug.name == name]
    outcome = hunt(bug)
    assert outcome.caught, outcome.output
