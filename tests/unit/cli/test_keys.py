"""`featurestore keys new`: a key for its holder, a line for the API."""

import stat
from pathlib import Path

import pytest

from featurestore.cli.main import main
from featurestore.clock import DAY, SystemClock
from featurestore.serving.keys import digest_of, parse_keys

WORDS = ["keys", "new", "scoring", "--scope", "lookup:flight_delay"]


def test_the_key_goes_to_stdout_and_its_line_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main([*WORDS, "--scope", "admin"])

    said = capsys.readouterr()
    key, line = said.out.strip(), said.err.partition("FS_API_KEYS_FILE: ")[2]
    found = parse_keys(line, "stderr").find(digest_of(key.encode()))
    assert found is not None
    assert ("scoring", ("lookup:flight_delay", "admin"), None) == (found[0].name, found[0].scopes, found[0].expires)
    assert key not in said.err


def test_keys_are_added_to_a_file_that_is_its_owners_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    assert [0, 0] == [main([*WORDS, "--append", str(path)]), main([*WORDS, "--expires", "90d", "--append", str(path)])]

    said = capsys.readouterr()
    ring = parse_keys(path.read_text(), "keys")
    found = [ring.find(digest_of(key.encode())) for key in said.out.split()]
    first, second = (holder[0].expires for holder in found if holder is not None)
    assert first is None
    assert second is not None
    assert abs(SystemClock().now() + 90 * DAY - second) < DAY
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert not any(key in said.err + path.read_text() for key in said.out.split())


def test_a_last_line_without_its_end_is_ended_first(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# made by hand")
    assert 0 == main([*WORDS, "--append", str(path)])

    assert 1 == len(parse_keys(path.read_text(), "keys").keys)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--expires", "soon"], "'soon' is no duration and no instant"),
        (["--expires", "2020-01-01T00:00:00Z"], "has passed"),
        (["--scope", "write:*"], "'write:*' is no scope"),
        (["--append", "/nowhere/keys"], "cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_before_a_key_is_shown(
    capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert 2 == main([*WORDS, *more])

    shown = capsys.readouterr()
    assert "" == shown.out
    assert said in shown.err
