"""The API where others can reach it: callers that are known, TLS, and a Redis that gives each process its rights."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from featurestore.cli.processes import child_environment
from featurestore.clock import SystemClock
from featurestore.online.fences import Beat
from featurestore.online.store import OnlineStore
from featurestore.registry.log import Registry
from featurestore.registry.plan import apply
from featurestore.serving.keys import new_key
from tests.docs.reading import ROOT, blocks
from tests.e2e.streaming import VIEWS, Project, assert_oracle, records_of, send, until_done
from tests.parts.process import ServerProcess
from tests.parts.redis import RedisServer
from tests.unit.serving import flights

FS = [sys.executable, "-P", "-m", "featurestore.cli"]
SOUND = {"service": "flight_delay", "entities": {"origin": ["JFK"]}}
KEY, ENTRY = new_key("flights", ["lookup:flight_delay"])
ADMIN, ADMIN_ENTRY = new_key("admin", ["admin"])
EVERYWHERE = "0.0.0.0"  # noqa: S104 — what the API must not do unguarded


def environment(**settings: str) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("FS_")}
    return child_environment({**bare, **settings})


def fs(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FS, *arguments], env=environment(**settings), capture_output=True, text=True, check=False, timeout=60
    )


class Served(ServerProcess):
    """`featurestore serve` with these arguments and settings, on a free port."""

    name = "api"

    def __init__(self, *arguments: str, verify: ssl.SSLContext | bool = True, **settings: str) -> None:
        super().__init__()
        self.verify = verify
        self._arguments, self._settings = arguments, {"FS_LOG": "console", **settings}

    def argv(self) -> list[str]:
        given = [f"{name}={value}" for name, value in environment(**self._settings).items() if name != "_"]
        return ["env", "-i", *given, *FS, "serve", "--port", "0", *self._arguments]

    @property
    def url(self) -> str:
        """As this machine reaches it."""
        match = re.search(r"read API on (\S+)", self.tail(100_000))
        return match[1].replace(EVERYWHERE, "127.0.0.1") if match else ""

    @property
    def settings(self) -> dict[str, str]:
        """For the command line beside it."""
        url = httpx.URL(self.url)
        return {**self._settings, "FS_HOST": url.host, "FS_PORT": str(url.port)}

    def answers(self) -> bool:
        if not self.url:
            return False
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2, verify=self.verify).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture
def lake(tmp_path: Path) -> str:
    apply(Registry(str(tmp_path / "lake")), flights.definitions(), now=SystemClock().now())
    return str(tmp_path / "lake")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"{ENTRY.line}\n{ADMIN_ENTRY.line}\n")
    return path


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# Who may ask


def test_an_api_that_others_can_reach_does_not_start_without_knowing_its_callers(lake: str) -> None:
    refused = fs("serve", "--host", EVERYWHERE, "--port", "0", FS_LAKE=lake)

    assert (2, "") == (refused.returncode, refused.stdout)
    assert "read API on" not in refused.stderr
    assert "knows no callers" in refused.stderr
    assert "FS_AUTH=none" in refused.stderr


def test_whoever_says_that_a_proxy_knows_the_callers_is_believed_and_warned(redis_url: str, lake: str) -> None:
    with Served("--host", EVERYWHERE, FS_REDIS=redis_url, FS_LAKE=lake, FS_AUTH="none") as api:
        assert 200 == httpx.post(f"{api.url}/v1/lookup", json=SOUND, timeout=10).status_code
        assert "whoever reaches this address may ask for everything" in api.tail()


def test_the_command_line_shows_its_key(redis_url: str, lake: str, keys: Path) -> None:
    with Served(
        "--host",
        EVERYWHERE,
        "--workers",
        "2",
        FS_REDIS=redis_url,
        FS_LAKE=lake,
        FS_API_KEYS_FILE=str(keys),
    ) as api:
        with httpx.Client(base_url=api.url, timeout=10) as http:
            bare, large = http.post("/v1/lookup", json=SOUND), http.post("/v1/lookup", content=b" " * 2_000_000)
            after = http.post("/v1/lookup", json=SOUND, headers=bearer(KEY))
        lookup = ("lookup", "flight_delay", "origin=JFK", "--output", "json")
        known = fs(*lookup, **api.settings, FS_API_KEY=KEY)
        unknown, wrong = fs(*lookup, **api.settings), fs(*lookup, **api.settings, FS_API_KEY=KEY[:-1])
        narrow = fs(*lookup, **api.settings, FS_API_KEY=ADMIN)

    assert (401, "unauthenticated") == (bare.status_code, bare.json()["code"])
    assert [401, 200] == [large.status_code, after.status_code]
    assert (0, "") == (known.returncode, known.stderr)
    assert [1, 1, 1] == [unknown.returncode, wrong.returncode, narrow.returncode]
    assert "set FS_API_KEY to a key" in unknown.stderr
    assert "is not one of the API's" in wrong.stderr
    assert "it needs the scope lookup:<service>; the key in FS_API_KEY has not" in narrow.stderr
    assert KEY[4:-1] not in api.tail() + unknown.stderr + wrong.stderr + narrow.stderr


def test_a_key_is_changed_under_load_without_a_refusal(redis_url: str, lake: str, keys: Path) -> None:
    with Served(FS_REDIS=redis_url, FS_LAKE=lake, FS_API_KEYS_FILE=str(keys)) as api:
        made = fs("keys", "new", "flights", "--scope", "lookup:flight_delay", "--append", str(keys))
        new, deadline = made.stdout.strip(), SystemClock().now() + 10_000_000
        with httpx.Client(base_url=api.url, timeout=10) as http:
            answers = []
            while http.post("/v1/lookup", json=SOUND, headers=bearer(new)).status_code != 200:
                answers.append(http.post("/v1/lookup", json=SOUND, headers=bearer(KEY)).status_code)
                assert SystemClock().now() < deadline
            keys.write_text("\n".join(line for line in keys.read_text().splitlines() if ENTRY.line != line) + "\n")
            while http.post("/v1/lookup", json=SOUND, headers=bearer(KEY)).status_code != 401:
                answers.append(http.post("/v1/lookup", json=SOUND, headers=bearer(new)).status_code)
                assert SystemClock().now() < deadline

    assert {200} == set(answers)


# TLS


class Authority:
    """Makes certificates for 127.0.0.1, signed by itself."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.path = directory / f"{name}.pem"
        self.path.write_bytes(self._sign(self._name, self._key, is_authority=True).public_bytes(Encoding.PEM))

    def issue(self, name: str, protection: KeySerializationEncryption | None = None) -> tuple[str, str]:
        """Paths of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        paths = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        paths[0].write_bytes(self._sign(subject, key).public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption()))
        return str(paths[0]), str(paths[1])

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False
    ) -> x509.Certificate:
        now = datetime.fromtimestamp(SystemClock().now() / 1e6, UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
        return builder.add_extension(names, critical=False).sign(self._key, SHA256())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


def test_the_api_speaks_tls_and_nothing_else(redis_url: str, lake: str, keys: Path, authority: Authority) -> None:
    cert, key = authority.issue("api")
    trusting = ssl.create_default_context(cafile=str(authority.path))
    with Served(
        "--tls-cert", cert, "--tls-key", key,
        verify=trusting, FS_REDIS=redis_url, FS_LAKE=lake, FS_API_KEYS_FILE=str(keys),
    ) as api:  # fmt: skip
        assert api.url.startswith("https://127.0.0.1:")
        answer = httpx.post(f"{api.url}/v1/lookup", json=SOUND, headers=bearer(KEY), verify=trusting, timeout=10)
        assert 200 == answer.status_code
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{api.url}/healthz")
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{api.url}/healthz".replace("https", "http"))
        said = fs("lookup", "flight_delay", "origin=JFK", **api.settings, FS_TLS_CERT=cert, FS_TLS_KEY=key,
                  FS_API_KEY=KEY, SSL_CERT_FILE=str(authority.path))  # fmt: skip
        assert 0 == said.returncode, said.stderr


def test_only_clients_with_a_certificate_of_the_authority_connect(
    redis_url: str, lake: str, tmp_path: Path, authority: Authority
) -> None:
    trusting = ssl.create_default_context(cafile=str(authority.path))
    known = ssl.create_default_context(cafile=str(authority.path))
    known.load_cert_chain(*authority.issue("client"))
    foreign = ssl.create_default_context(cafile=str(authority.path))
    foreign.load_cert_chain(*Authority(tmp_path, "other").issue("stranger"))
    cert, key = authority.issue("api")
    settings = {"FS_TLS_CERT": cert, "FS_TLS_KEY": key, "FS_TLS_CA": str(authority.path)}
    with Served(verify=known, FS_REDIS=redis_url, FS_LAKE=lake, **settings) as api:
        assert 200 == httpx.post(f"{api.url}/v1/lookup", json=SOUND, verify=known, timeout=10).status_code
        for context in (trusting, foreign):
            with pytest.raises(httpx.HTTPError):
                httpx.post(f"{api.url}/v1/lookup", json=SOUND, verify=context, timeout=10)


@pytest.mark.parametrize("wrong", ["no key", "other key", "no file", "encrypted", "no certificate"])
def test_tls_files_that_do_not_fit_stop_the_start(authority: Authority, tmp_path: Path, wrong: str) -> None:
    cert, key = authority.issue("api")
    _, other = authority.issue("other")
    _, encrypted = authority.issue("locked", BestAvailableEncryption(b"secret"))
    settings = {
        "no key": {"FS_TLS_CERT": cert},
        "other key": {"FS_TLS_CERT": cert, "FS_TLS_KEY": other},
        "no file": {"FS_TLS_CERT": cert, "FS_TLS_KEY": str(tmp_path / "none")},
        "encrypted": {"FS_TLS_CERT": cert, "FS_TLS_KEY": encrypted},
        "no certificate": {"FS_TLS_CERT": key, "FS_TLS_KEY": key},
    }
    refused = fs("serve", "--port", "0", **settings[wrong])

    assert 2 == refused.returncode
    assert refused.stderr.startswith("error: ")
    assert "FS_TLS" in refused.stderr or "cannot be used" in refused.stderr


# Redis


def documented_users() -> dict[str, str]:
    """Name → rules, as docs/operations.md has them."""
    [block] = [b for b in blocks(ROOT / "docs" / "operations.md") if b.text.startswith("user ")]
    lines = [line.split(maxsplit=2) for line in block.text.splitlines()]
    return {name: rules for _, name, rules in lines}


@pytest.fixture
def users(redis: RedisServer) -> dict[str, str]:
    """URLs of a Redis that has the documented users; its default user stays, for the test."""
    urls = {}
    for name, rules in documented_users().items():
        if name == "default":
            continue
        password = re.search(r">(\S+)", rules)
        assert password is not None
        reply = redis.command(f"ACL SETUSER {name} reset {rules}")
        assert reply.startswith(b"+OK"), reply
        urls[name] = redis.url.replace("redis://", f"redis://{name}:{password[1]}@")
    return urls


def denied(redis: RedisServer) -> set[str]:
    """What users asked for and may not."""
    return set(re.findall(r"object\r\n\$\d+\r\n(\S+)\r\n", redis.command("ACL LOG 50").decode("latin-1")))


async def test_worker_and_api_do_their_work_with_the_documented_rights(
    broker: str, redis: RedisServer, users: dict[str, str], store: OnlineStore, tmp_path: Path
) -> None:
    project = Project(broker, users["fs-worker"], tmp_path)
    try:
        catalog, records = project.publish(), records_of(500, seed=61)
        project.worker()
        await send(broker, records)
        await until_done(store, records, VIEWS)
        for view in catalog.views.values():
            assert await assert_oracle(store, view, records) > 10
        with Served(FS_REDIS=users["fs-api"], FS_LAKE=project.lake) as api:
            asked = {"service": "clicks", "entities": {"user": ["u1"], "shop": ["s1"]}}
            answer = await asyncio.to_thread(httpx.post, f"{api.url}/v1/lookup", json=asked, timeout=10)
            ready = await asyncio.to_thread(httpx.get, f"{api.url}/readyz", timeout=10)
        settings = {"FS_KAFKA": broker, "FS_REDIS": users["fs-worker"], "FS_LAKE": project.lake}
        assert 0 == project.workers[0].terminate()
        rebuilt = await asyncio.to_thread(fs, "rebuild", "--view", "user_clicks@1", **settings)
    finally:
        project.stop()

    assert (200, ["u1", "s1"]) == (answer.status_code, [answer.json()["rows"][0]["values"][i] for i in (3, 8)])
    assert 200 == ready.status_code, ready.text
    assert 0 == rebuilt.returncode, rebuilt.stderr
    # The client library tells its version, and does without where it may not.
    assert denied(redis) <= {"client|setinfo"}


WRITES = (
    "SET fs:x 1", "DEL fs:v:a@1:{00}:k", "HSET fs:fence:a@1 0 x", "HDEL fs:fence:a@1 0", "PEXPIRE fs:x 1",
    "EVAL 'return 0' 0", "EVALSHA 0000000000000000000000000000000000000000 0", "SCRIPT LOAD 'return 0'",
    "COPY fs:x fs:y", "PUBLISH a b", "XADD fs:s * a b", "FUNCTION LIST",
)  # fmt: skip
ANYONES = (
    "FLUSHALL", "FLUSHDB", "CONFIG GET *", "CONFIG SET maxmemory-policy allkeys-lru", "KEYS *", "ACL LIST",
    "ACL WHOAMI", "SHUTDOWN", "REPLICAOF NO ONE", "MONITOR", "SAVE", "CLIENT LIST", "MODULE LIST", "EVAL 'return 0' 0",
    "GET other:x", "MGET other:x", "HGETALL other:fence:a@1", "MGET fs:x other:x", "SUBSCRIBE a",
)  # fmt: skip


@pytest.mark.parametrize(
    ("user", "commands"),
    [
        ("fs-api", (*WRITES, *ANYONES, "SCAN 0", "GET fs:x")),
        ("fs-worker", (*ANYONES, "SET other:x 1", "HSET other:h a b", "DEL other:x", "RENAME fs:x other:x")),
    ],
)
async def test_nobody_gets_at_what_is_not_theirs(users: dict[str, str], user: str, commands: tuple[str, ...]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(users[user].rsplit(":", 1)[1].split("/")[0]))
    try:
        writer.write(f"AUTH {user} {users[user].split(':')[2].split('@')[0]}\r\n".encode())
        assert b"+OK\r\n" == await reader.readline()
        replies = {}
        for command in commands:
            writer.write(command.encode() + b"\r\n")
            replies[command] = await reader.readline()
    finally:
        writer.close()

    assert {} == {command: reply for command, reply in replies.items() if not reply.startswith(b"-NOPERM")}


async def test_a_worker_cannot_write_another_projects_keys_through_its_scripts(users: dict[str, str]) -> None:
    async with OnlineStore.connect(users["fs-worker"], project="other") as other:
        with pytest.raises(Exception, match="refuses this user"):
            await other.write("a@1", ["k"], [bytes(64)])
        with pytest.raises(Exception, match="refuses this user"):
            await other.put_beats("fold:a@1", {0: Beat(at=0, position=0, end=0, behind_seconds=0.0)})


async def test_an_api_that_tried_to_write_would_be_stopped_by_redis(users: dict[str, str]) -> None:
    async with OnlineStore.connect(users["fs-api"]) as store:
        assert [None] == await store.read("a@1", ["k"])
        with pytest.raises(Exception, match="refuses this user"):
            await store.write("a@1", ["k"], [bytes(64)])
