"""The contracts of `lint-imports` bind only what they name, so a test sees to it that they name everything."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_module_stands_on_a_floor() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    floors = {name for layer in layers for name in re.findall(r"featurestore\.(\w+)", layer)}
    present = {path.stem for path in (ROOT / "featurestore").iterdir() if path.suffix == ".py" or _is_package(path)}

    assert present - floors == {"__init__"}


def test_pins_name_no_host_and_every_pin_has_a_hash() -> None:
    text = (ROOT / "deploy" / "constraints.txt").read_text()
    requirements = text.replace("\\\n", "").splitlines()

    assert "://" not in text
    assert len(requirements) > 100
    assert [r for r in requirements if not re.match(r"[a-z0-9.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", r)] == []


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").exists()
