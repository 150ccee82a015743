import json
import subprocess
import sys
from pathlib import Path

import pytest

import featurestore

HEAVY = {
    "duckdb",
    "pyarrow",
    "redis",
    "httpx",
    "fastapi",
    "cupy",
    "pydantic",
    "numpy",
    "deltalake",
    "obstore",
    "aiokafka",
    "faust",
}


def loaded_by(statement: str) -> set[str]:
    """Top-level names of the modules that a fresh interpreter has after the statement."""
    root = str(Path(featurestore.__file__).parents[1])
    names = "sorted({name.partition('.')[0] for name in sys.modules})"
    script = f"import json, sys\nsys.path.insert(0, {root!r})\n{statement}\nprint(json.dumps({names}))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


DEFINING = "from featurestore import Entity, FeatureService, Source, agg, col, feature, feature_view, when"


@pytest.mark.parametrize("statement", ["import featurestore", DEFINING])
def test_importing_the_package_loads_nothing_heavy(statement: str) -> None:
    assert loaded_by(statement) & HEAVY == set()


def test_a_client_needs_nothing_of_the_store() -> None:
    asking = "from featurestore import AsyncClient, Client; Client('http://127.0.0.1:1').close()"

    assert {"httpx"} == loaded_by(asking) & HEAVY


def test_public_names_are_sorted_and_all_there() -> None:
    assert featurestore.__all__ == sorted(featurestore.__all__)
    assert all(getattr(featurestore, name) is not None for name in featurestore.__all__)
    assert set(featurestore.__all__) <= set(dir(featurestore))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sevice'"):
        featurestore.Sevice  # noqa: B018
