import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from featurestore import Entity
from featurestore.definitions.jsontext import dumps
from featurestore.errors import ConfigError, Corrupt, RegistryConflict, Unavailable
from featurestore.registry.catalog import EMPTY
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply, plan
from featurestore.registry.revision import MAX_BYTES
from tests.unit.definitions.flights import delays, view
from tests.unit.registry.published import NOW, definitions


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "a lake"


@pytest.fixture
def registry(lake: Path) -> Registry:
    return Registry(str(lake))


def test_a_lake_that_is_not_there_has_no_revisions_and_is_not_made_by_reading(registry: Registry, lake: Path) -> None:
    assert registry.latest() == 0
    assert registry.poll(0) is None
    assert registry.head() is EMPTY
    assert not lake.exists()


def test_revisions_are_plain_files_in_the_lake(registry: Registry, lake: Path) -> None:
    apply(registry, definitions(), now=NOW)
    data = json.loads((lake / "registry" / "1.json").read_bytes())
    assert (data["format"], data["revision"], data["parent"]) == (1, 1, "")
    assert data["created_at"] == "2026-03-01T12:00:00Z"
    assert data["aliases"] == {"flight_delay": {"prod": 1}}
    assert data["splits"] == {}


def test_each_revision_names_its_parent(registry: Registry) -> None:
    first = apply(registry, definitions(), now=NOW)
    apply(registry, definitions(delays(version=2)), now=NOW)
    assert registry.read(2).parent == first.digest == registry.read(1).digest


def test_a_file_url_is_the_same_registry(registry: Registry, lake: Path) -> None:
    apply(registry, definitions(), now=NOW)
    assert Registry(lake.as_uri()).latest() == 1


def test_the_newest_is_by_number_and_not_by_text(registry: Registry) -> None:
    for number in range(1, 12):
        apply(registry, definitions(view(f"View{number}"), services=[]), now=NOW)
    assert registry.latest() == 11
    assert [registry.poll(0), registry.poll(10), registry.poll(11)] == [11, 11, None]


def test_other_files_in_the_folder_are_no_revisions(registry: Registry, lake: Path) -> None:
    apply(registry, definitions(), now=NOW)
    for name in ("2.json.tmp", "x.json", "01.json", "0.json", "-3.json"):
        (lake / "registry" / name).write_text("{}")
    assert registry.latest() == 1


def test_the_second_of_two_writers_loses_with_what_the_first_did(registry: Registry) -> None:
    base = apply(registry, definitions(), now=NOW)
    mine = plan(base, definitions(view("Mine"), services=[]))
    apply(registry, definitions(delays(version=2)), now=NOW, promote=True)
    with pytest.raises(RegistryConflict) as caught:
        registry.append(mine.content, base, NOW)
    assert str(caught.value) == (
        "revision 2 was made by somebody else first; since revision 1:\n"
        "  - view airport_delay@2 added\n"
        "  - service flight_delay@2 added\n"
        "  - alias flight_delay@prod 1 -> 2\n"
        "  hint: run plan again, look at what changed, then apply"
    )
    assert registry.latest() == 2


def test_a_write_that_was_retried_after_it_arrived_is_no_conflict(registry: Registry) -> None:
    content = plan(EMPTY, definitions()).content
    first = registry.append(content, EMPTY, NOW)
    assert registry.append(content, EMPTY, NOW).digest == first.digest
    assert registry.latest() == 1


def _append_with_others(url: str, name: str, together: Barrier, outcomes: "SimpleQueue[str]") -> None:
    registry = Registry(url)
    base = registry.head()
    content = plan(base, definitions(view(name), services=[])).content
    together.wait()
    try:
        registry.append(content, base, NOW)
        outcomes.put("won")
    except RegistryConflict:
        outcomes.put("lost")


def test_of_processes_that_write_at_once_exactly_one_wins(registry: Registry) -> None:
    apply(registry, definitions(), now=NOW)
    names = ("One", "Two", "Three")
    spawn = multiprocessing.get_context("spawn")
    together, outcomes = spawn.Barrier(len(names), timeout=60), spawn.SimpleQueue()
    writers = [spawn.Process(target=_append_with_others, args=(registry.url, n, together, outcomes)) for n in names]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(outcomes.get() for writer in writers if writer.exitcode == 0) == ["lost", "lost", "won"]
    assert registry.latest() == 2


def test_a_registry_that_was_replaced_is_noticed_before_writing(registry: Registry, lake: Path) -> None:
    base = apply(registry, definitions(), now=NOW)
    (lake / "registry" / "1.json").unlink()
    apply(registry, definitions(), now=NOW + 1)
    with pytest.raises(RegistryConflict, match="revision 1 was replaced since it was read"):
        registry.append(base.content, base, NOW)


def damaged(raw: bytes, how: str) -> bytes:
    data = json.loads(raw)
    edits: dict[str, Callable[[], bytes]] = {
        "edited": lambda: dumps({**data, "aliases": {}}),
        "cut": lambda: raw[: len(raw) // 2],
        "empty": lambda: b"",
        "list": lambda: b"[]",
        "no text": lambda: b"\xff" + raw,
        "key twice": lambda: raw.replace(b'"splits":', b'"splits":{},"splits":'),
        "deep": lambda: b"[" * 200_000,
        "huge": lambda: raw + b" " * MAX_BYTES,
        "newer format": lambda: dumps({**data, "format": 2}),
        "more": lambda: dumps({**data, "code": "import os"}),
    }
    return edits[how]()


DAMAGE = {
    "edited": "does not match its digest",
    "cut": "is unreadable",
    "empty": "is unreadable",
    "list": "is no JSON object",
    "no text": "is unreadable",
    "key twice": "a key is repeated",
    "deep": "nested too deep",
    "huge": "more than 16777216",
    "newer format": "has format 2, and this version reads 1",
    "more": "has other fields than expected",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_revision_is_refused(registry: Registry, lake: Path, how: str) -> None:
    apply(registry, definitions(), now=NOW)
    path = lake / "registry" / "1.json"
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(Corrupt, match=DAMAGE[how]):
        registry.head()


def test_a_revision_under_another_number_is_refused(registry: Registry, lake: Path) -> None:
    apply(registry, definitions(), now=NOW)
    (lake / "registry" / "1.json").rename(lake / "registry" / "2.json")
    with pytest.raises(Corrupt, match="revision 2 calls itself 1"):
        registry.head()


def test_a_missing_revision_is_told(registry: Registry) -> None:
    with pytest.raises(Corrupt, match="revision 7 is missing"):
        registry.read(7)


def test_a_store_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable, match="the registry in s3://bucket/lake does not answer") as caught:
        Registry("s3://bucket/lake").poll(0)
    assert caught.value.part == "lake"


def test_a_lake_of_an_unknown_kind_is_a_setting_to_mend() -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        Registry("gopher://lake").latest()


def test_a_revision_too_large_to_read_back_is_not_written(registry: Registry) -> None:
    long = definitions(view(entity=Entity("airport", {"origin": str}, description="x" * MAX_BYTES)), services=[])
    with pytest.raises(Exception, match=r"would have .* bytes, more than 16777216"):
        apply(registry, long, now=NOW)
    assert registry.latest() == 0
