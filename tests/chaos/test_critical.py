"""The faults that must never hurt, once each with a small load. All of them with more seeds: `make chaos`."""

from collections.abc import Iterator

import pytest

from tests.chaos.run import Site
from tests.chaos.site import site
from tests.chaos.table import SCENARIOS, play

SIZE = 0.1
CRITICAL = (1, 3, 4, 6, 8, 11)

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("chaos")) as found:
        yield found


@pytest.mark.parametrize("row", CRITICAL)
async def test_after_a_fault_no_number_is_wrong(shared: Site, row: int) -> None:
    tally, history = await play(shared, SCENARIOS[row], seed=1, size=SIZE)
    assert tally.events > 0
    assert history.exists()


def test_every_row_is_there_once() -> None:
    assert sorted(SCENARIOS) == list(SCENARIOS)
    assert set(CRITICAL) < set(SCENARIOS)
