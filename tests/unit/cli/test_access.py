"""What `doctor` says about callers, on real files."""

from pathlib import Path
from typing import Any

import pytest

from featurestore.cli.access import access_findings
from featurestore.clock import DAY, ManualClock
from featurestore.config import load_settings
from featurestore.errors import ConfigError
from featurestore.online.health import Level
from featurestore.serving.keys import new_key


def told(clock: ManualClock, **settings: Any) -> list[tuple[str, str, str]]:
    found = access_findings(load_settings(**settings), clock.now())
    return [(finding.level, finding.message, finding.hint) for finding in found]


def file_of(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o600)
    return path


def test_on_this_machine_anyone_may_ask(clock: ManualClock) -> None:
    assert [(Level.OK, "anyone on this machine may ask: the API listens on 127.0.0.1 only", "")] == told(clock)


def test_an_open_address_is_told(clock: ManualClock) -> None:
    [(level, message, _)] = told(clock, host="10.0.0.7", auth="none")

    assert (Level.ADVICE, "FS_AUTH=none on 10.0.0.7: whoever reaches it may ask") == (level, message)


def test_what_the_api_would_not_start_with_is_a_fault_of_its_own(clock: ManualClock, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="knows no callers"):
        told(clock, host="10.0.0.7")
    with pytest.raises(ConfigError, match=r"line 1: it has 1 words"):
        told(clock, api_keys_file=file_of(tmp_path / "keys", "nonsense"))


def test_the_last_key_of_a_name_counts_for_when_it_ends(clock: ManualClock, tmp_path: Path) -> None:
    def line(name: str, days: int | None) -> str:
        return new_key(name, ["admin"], expires=None if days is None else clock.now() + days * DAY)[1].line

    path = file_of(
        tmp_path / "keys", line("over", -1), line("soon", 13), line("later", 15), line("changed", 1),
        line("changed", 90), line("for-good", None), line("for-good", 1),
    )  # fmt: skip
    messages = told(clock, api_keys_file=path, api_keys=line("over", -2))

    assert [
        (Level.OK, "callers must say who they are"),
        (Level.OK, "5 holders of API keys"),
        (Level.ADVICE, "the last key of over expired at 2026-02-28T12:00:00Z"),
        (Level.ADVICE, "the last key of soon expires at 2026-03-14T12:00:00Z"),
    ] == [(level, message) for level, message, _ in messages]
    assert "featurestore keys new soon --scope admin --append FILE" == messages[-1][2]


@pytest.mark.parametrize(("mode", "advised"), [(0o600, False), (0o644, False), (0o664, True), (0o602, True)])
def test_keys_that_others_can_write_are_told(clock: ManualClock, tmp_path: Path, mode: int, advised: bool) -> None:
    path = file_of(tmp_path / "keys", new_key("a", ["admin"])[1].line)
    path.chmod(mode)

    hints = [hint for level, _, hint in told(clock, api_keys_file=path) if level == Level.ADVICE]
    assert [f"chmod go-w {path}"] * advised == hints
