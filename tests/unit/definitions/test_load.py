import json
import sys
from pathlib import Path

import pytest

from featurestore.definitions.load import load_definitions
from featurestore.errors import DefinitionError, NotFound
from tests.unit.definitions.flights import SCHEMA

HEAD = """\
from featurestore import Entity, Source, FeatureService, feature_view, agg, col, feature
Airport = Entity("airport", keys={"origin": str})
Departures = Source("departures", "flights.departures", contract="flights.departures/v1", event_time="departed_at")
"""
VIEW = """\
@feature_view(entity=Airport, source=Departures, version=1)
class AirportDelay:
    departures_1h = agg.count(window="1h")
"""
SERVICE = 'flight_delay = FeatureService("flight_delay", views=[AirportDelay])\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with the contract in place; also the current directory."""
    folder = tmp_path / "schemas" / "flights.departures"
    folder.mkdir(parents=True)
    (folder / "v1.avsc").write_text(json.dumps(SCHEMA))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def faults(project: Path, text: str) -> list[str]:
    path = project / "bad.py"
    path.write_text(text)
    with pytest.raises(DefinitionError) as caught:
        load_definitions(str(path))
    return [str(fault) for fault in caught.value.faults]


def test_a_file_gives_its_views_and_services(project: Path) -> None:
    (project / "features.py").write_text(HEAD + VIEW + SERVICE)
    found = load_definitions("features.py")
    assert [view.id for view in found.views] == ["airport_delay@1"]
    assert [service.name for service in found.services] == ["flight_delay"]
    assert list(found.contracts) == ["flights.departures/v1"]


def test_a_dotted_module_of_the_current_directory_works_alike(project: Path) -> None:
    package = project / "shop_features"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "delays.py").write_text(HEAD + VIEW + SERVICE)
    found = load_definitions("shop_features.delays", project / "schemas")
    assert [view.id for view in found.views] == ["airport_delay@1"]


def test_views_in_lists_and_mappings_are_found(project: Path) -> None:
    kept = 'views = [AirportDelay]\nby_name = {"s": Second}\ndel AirportDelay, Second\n'
    (project / "features.py").write_text(HEAD + VIEW + VIEW.replace("AirportDelay", "Second") + kept)
    assert {view.name for view in load_definitions("features.py").views} == {"airport_delay", "second"}


def test_a_file_may_import_its_neighbours(project: Path) -> None:
    (project / "neighbouring_views.py").write_text(HEAD + VIEW)
    imports = "from neighbouring_views import AirportDelay\nfrom featurestore import *\n"
    (project / "services.py").write_text(imports + SERVICE)
    assert len(load_definitions(str(project / "services.py")).services) == 1


def test_an_edit_within_a_second_is_seen(project: Path) -> None:
    path = project / "features.py"
    path.write_text(HEAD + VIEW)
    assert load_definitions(str(path)).views[0].version == 1
    path.write_text(HEAD + VIEW.replace("version=1", "version=2"))
    assert load_definitions(str(path)).views[0].version == 2


def test_loading_leaves_the_import_path_as_it_was(project: Path) -> None:
    (project / "features.py").write_text(HEAD + VIEW)
    before = list(sys.path)
    load_definitions("features.py")
    assert sys.path == before
    assert "featurestore_definitions_features" not in sys.modules


def test_an_exception_in_the_file_is_told_with_its_line(project: Path) -> None:
    told = f"{project}/bad.py:5: NameError: name 'nothing' is not defined"
    assert faults(project, HEAD + "\nx = nothing\n") == [told]


def test_an_exception_below_the_file_is_told_with_the_line_of_the_file(project: Path) -> None:
    assert faults(project, "import json\n\njson.loads('{')\n")[0].startswith(f"{project}/bad.py:3: JSONDecodeError: ")


def test_a_file_that_exits_is_told_and_does_not_end_the_process(project: Path) -> None:
    assert faults(project, "import sys\nsys.exit('no')\n") == [f"{project}/bad.py:2: SystemExit: no"]


def test_a_syntax_error_is_told_with_its_line(project: Path) -> None:
    assert faults(project, "a = 1\nb = (\n")[0].startswith(f"{project}/bad.py:2: SyntaxError: ")


def test_a_missing_import_is_told_with_its_line(project: Path) -> None:
    told = f"{project}/bad.py:1: ModuleNotFoundError: No module named 'no_such_module'"
    assert faults(project, "import no_such_module\n") == [told]


def test_a_file_that_is_no_text_is_a_fault(project: Path) -> None:
    (project / "bad.py").write_bytes(b"\xff\x00")
    with pytest.raises(DefinitionError, match=r"bad\.py"):
        load_definitions("bad.py")


def test_a_repeated_feature_is_found_though_python_keeps_one(project: Path) -> None:
    text = HEAD + VIEW + "    departures_1h = agg.count(window='2h')\n"
    assert faults(project, text) == [
        "AirportDelay.departures_1h: is defined twice, on lines 6 and 7; expected each name once"
    ]


def test_a_repeated_view_and_service_are_found_though_python_keeps_one(project: Path) -> None:
    found = faults(project, HEAD + VIEW + VIEW + SERVICE + SERVICE)
    assert "AirportDelay: is defined twice, on lines 5 and 8; expected each name once" in found
    assert "flight_delay: is defined twice, on lines 10 and 11; expected each name once" in found


def test_repeats_are_told_beside_every_other_fault(project: Path) -> None:
    text = HEAD + VIEW + "    departures_1h = agg.cuont()\n    other = agg.sum(col('nope'), window='0s')\n"
    assert [f.split(":")[0] for f in faults(project, text)] == [
        "AirportDelay.departures_1h",
        "AirportDelay.departures_1h",
        "AirportDelay.other",
        "AirportDelay.other",
    ]


def test_a_class_without_its_decorator_is_a_fault(project: Path) -> None:
    told = "Lost: has features, but is no view (bad.py); expected @feature_view(…) above the class"
    assert faults(project, HEAD + VIEW + "class Lost:\n    n = agg.count()\n") == [told]


def test_a_file_that_defines_nothing_is_a_fault(project: Path) -> None:
    assert "bad.py: defines nothing; expected a class under @feature_view" in faults(project, HEAD)[0]


def test_a_missing_contract_is_told_with_near_ones(project: Path) -> None:
    text = (HEAD + VIEW).replace("departures/v1", "departures/v2")
    assert faults(project, text)[0].startswith("departures.contract: unknown contract 'flights.departures/v2'")
    assert "did you mean 'flights.departures/v1'?" in faults(project, text)[0]


def test_a_contract_that_is_not_avro_is_a_fault(project: Path) -> None:
    (project / "schemas" / "flights.departures" / "v1.avsc").write_text("<xml/>")
    assert "the schema is not JSON" in faults(project, HEAD + VIEW)[0]


@pytest.mark.parametrize("contract", ["../../etc/passwd", "flights", "", "a/b/c"])
def test_a_contract_id_is_no_path(project: Path, contract: str) -> None:
    text = (HEAD + VIEW).replace("flights.departures/v1", contract)
    assert "is no contract id" in faults(project, text)[0]


def test_a_misspelt_file_is_told_with_near_ones(project: Path) -> None:
    (project / "features.py").write_text("")
    with pytest.raises(NotFound, match=r"unknown file of definitions 'faetures.py'; did you mean 'features.py'\?"):
        load_definitions("faetures.py")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("schemas/", "is a directory; name a .py file in it"),
        ("nowhere/features.py", "there is no directory nowhere"),
        ("no_such_module", "give a dotted module that Python can import from here, or a .py file"),
        ("no.such.module", "give a dotted module that Python can import from here, or a .py file"),
    ],
)
def test_a_target_that_is_not_there_says_what_to_give(project: Path, target: str, told: str) -> None:
    with pytest.raises(NotFound, match=told):
        load_definitions(target)
