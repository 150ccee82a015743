from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import Corrupt, NotFound
from featurestore.registry.catalog import EMPTY, Catalog, catalog_of
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.registry.revision import encode
from tests.unit.definitions.flights import delays
from tests.unit.registry.published import NOW, definitions


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """Two versions of a view and of its service; prod leads to the first."""
    registry = Registry(str(tmp_path))
    apply(registry, definitions(), now=NOW)
    return apply(registry, definitions(delays(version=2)), now=NOW)


@pytest.mark.parametrize(("name", "version"), [("flight_delay", 1), ("flight_delay@prod", 1), ("flight_delay@2", 2)])
def test_a_service_is_found_by_name_alias_or_version(catalog: Catalog, name: str, version: int) -> None:
    service, found = catalog.resolve(name)
    assert found == version
    assert service.views == (("airport_delay", version),)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("flight_dely", "unknown service 'flight_dely'; did you mean 'flight_delay'?"),
        ("flight_delay@prd", "unknown alias 'flight_delay@prd'; did you mean 'flight_delay@prod'?"),
        ("flight_delay@3", "unknown version 'flight_delay@3'; did you mean"),
        ("flight_delay@99999999999999999999", "unknown alias"),
        ("flight_delay@²", "unknown alias"),
        ("", "unknown service ''"),
    ],
)
def test_what_is_not_published_is_told_with_near_matches(catalog: Catalog, name: str, told: str) -> None:
    with pytest.raises(NotFound) as caught:
        catalog.resolve(name)
    assert told in str(caught.value)


def test_a_view_is_found_by_name_or_version(catalog: Catalog) -> None:
    assert [catalog.view("airport_delay").version, catalog.view("airport_delay@1").version] == [2, 1]
    with pytest.raises(NotFound, match="unknown view 'airprt_delay'; did you mean 'airport_delay'"):
        catalog.view("airprt_delay")
    with pytest.raises(NotFound, match="unknown version 'airport_delay@3'"):
        catalog.view("airport_delay@3")


def test_before_the_first_apply_there_is_nothing_and_the_hint_says_what_to_do() -> None:
    with pytest.raises(NotFound, match="run: featurestore apply"):
        EMPTY.resolve("flight_delay")


def _view(content: Any) -> Any:
    return content["views"]["airport_delay"]["1"]


TAMPERED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "meaning": (lambda c: _view(c).update(ttl="1d"), "by its content and"),
    "operation": (lambda c: _view(c)["features"][0]["aggregate"].update(op="exec"), "unknown operation 'exec'"),
    "column": (lambda c: _view(c)["features"][1]["aggregate"].update(column=["col", None]), "no expression|constant"),
    "version": (lambda c: c["views"]["airport_delay"].update({"5": _view(c)}), "by its label"),
    "version's text": (lambda c: c["views"]["airport_delay"].update({"x": _view(c)}), "invalid literal"),
    "no fingerprint": (lambda c: _view(c).pop("fingerprint"), "fingerprint"),
    "contract": (lambda c: c["contracts"].clear(), "unknown contract"),
    "contract's text": (lambda c: c["contracts"].update({"flights.departures/v1": "<xml/>"}), "is not JSON"),
    "service": (lambda c: c["services"]["flight_delay"]["1"].update(budget_ms=5), "by its content and"),
    "view of a service": (lambda c: c["views"].clear(), "no view airport_delay@1"),
    "alias": (lambda c: c["aliases"]["flight_delay"].update(prod=7), "leads to 7, which is no version"),
    "alias's type": (lambda c: c["aliases"]["flight_delay"].update(prod=True), "which is no version"),
    "source": (lambda c: c["sources"].update(other=c["sources"]["departures"]), "calls itself 'departures'"),
    "view that is no mapping": (lambda c: c["views"]["airport_delay"].update({"1": "x"}), "cannot be used"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_content_that_does_not_hold_together_is_corrupt_though_its_digest_fits(catalog: Catalog, case: str) -> None:
    tamper, told = TAMPERED[case]
    content = deepcopy(dict(catalog.content))
    tamper(content)
    revision, _ = encode(3, catalog.digest, NOW, content)
    with pytest.raises(Corrupt, match=told):
        catalog_of(revision)
