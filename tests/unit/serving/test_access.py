"""Who may ask the read API for what, on a running application."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import telemetry
from featurestore.clock import DAY, SECOND, ManualClock
from featurestore.config import load_settings
from featurestore.errors import ConfigError
from featurestore.serving import access
from featurestore.serving.access import Access, Credentials, access_to, is_local
from featurestore.serving.app import create_app
from featurestore.serving.callers import Caller
from featurestore.serving.keys import ApiKey, Keyring, new_key
from featurestore.serving.problems import Refused
from featurestore.serving.watched import MAX_BYTES, WatchedFile
from tests.unit.serving.api import Api, running
from tests.unit.serving.issuer import AUDIENCE, ISSUER, SigningKey, claims, key_set

NOW = 1_772_366_400_000_000
SOUND = {"service": "flight_delay", "entities": {"origin": ["JFK"]}}
FOLLOW_SECONDS = 5.0
EVERYWHERE = "0.0.0.0"  # noqa: S104 — nothing is bound
OPEN = {"/healthz", "/readyz"}
COMMON = {"/v1/lookup", "/v1/services"}
RSA = SigningKey("RS256", "rsa")

FLIGHTS, FLIGHTS_ENTRY = new_key("flights", ["lookup:flight_delay"])
EVERY, EVERY_ENTRY = new_key("every", ["lookup:*"])
ADMIN, ADMIN_ENTRY = new_key("admin", ["admin"])
GHOST, GHOST_ENTRY = new_key("ghost", ["lookup:gone"])
OLD, OLD_ENTRY = new_key("flights", ["lookup:*"], expires=NOW)
ENTRIES = (FLIGHTS_ENTRY, EVERY_ENTRY, ADMIN_ENTRY, GHOST_ENTRY, OLD_ENTRY)


def lines(*entries: ApiKey) -> str:
    return "".join(f"{entry.line}\n" for entry in entries)


def shown(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


@pytest.fixture
async def guarded(redis_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Api]:
    """With the keys above in its environment."""
    async with running(redis_url, tmp_path, clock, key=EVERY, api_keys=lines(*ENTRIES)) as api:
        api.http.headers.pop("authorization")
        yield api


async def test_every_route_but_the_probes_asks_who_it_is(guarded: Api) -> None:
    document = (await guarded.http.get("/openapi.json", headers=shown(ADMIN))).json()
    answers = {
        (path, method): await guarded.http.request(method, path)
        for path, operations in document["paths"].items()
        for method in operations
    }

    assert OPEN | COMMON | {"/v1/views", "/v1/status", "/metrics"} == {path for path, _ in answers}
    asked = {path for (path, _), answer in answers.items() if answer.status_code == 401}
    assert asked == {path for path, _ in answers} - OPEN
    for path in ("/docs", "/openapi.json", "/redoc", "/v1/nothing", "/", "/healthz/", "//healthz", "/v1/lookup/"):
        assert 401 == (await guarded.http.get(path)).status_code, path


@pytest.mark.parametrize(
    ("key", "lookup", "others"),
    [(FLIGHTS, 200, 403), (EVERY, 200, 403), (GHOST, 403, 403), (ADMIN, 403, 200)],
    ids=["one service", "every service", "a service that is not", "administration"],
)
async def test_a_caller_gets_what_its_scopes_say(guarded: Api, key: str, lookup: int, others: int) -> None:
    http = guarded.http
    http.headers.update(shown(key))

    assert lookup == (await guarded.lookup(SOUND)).status_code
    assert {200} == {(await http.get(path)).status_code for path in ("/v1/services", "/docs", "/openapi.json")}
    assert {others} == {(await http.get(path)).status_code for path in ("/v1/views", "/v1/status", "/metrics")}
    assert {404 if others == 200 else 403} == {(await http.get(path)).status_code for path in ("/v1/nothing", "/")}
    assert 405 == (await http.get("/v1/lookup")).status_code


@pytest.mark.parametrize("service", ["flight_delay", "flight_delay@prod", "flight_delay@1"])
async def test_a_scope_holds_for_every_version_of_its_service(guarded: Api, service: str) -> None:
    assert (
        200
        == (
            await guarded.http.post("/v1/lookup", json=SOUND | {"service": service}, headers=shown(FLIGHTS))
        ).status_code
    )


async def test_a_service_outside_the_scopes_looks_as_if_it_might_not_exist(guarded: Api) -> None:
    asked = [
        "leg_delay",
        "leg_delay@prod",
        "leg_dely",
        "flight_dela",
        "flight_delay ",
        " flight_delay",
        "",
        "@prod",
        "*",
    ]
    answers = [
        await guarded.http.post("/v1/lookup", json=SOUND | {"service": service}, headers=shown(FLIGHTS))
        for service in asked
    ]

    assert {403} == {answer.status_code for answer in answers}
    assert 1 == len({(answer.content, str(answer.headers)) for answer in answers})
    assert "insufficient_scope" in answers[0].headers["www-authenticate"]


async def test_a_scope_for_a_service_that_is_gone_shows_no_others(guarded: Api) -> None:
    answer = await guarded.http.post("/v1/lookup", json=SOUND | {"service": "gone"}, headers=shown(GHOST))

    assert 404 == answer.status_code
    assert "delay" not in answer.text


async def test_services_are_listed_to_those_who_may_use_them(guarded: Api) -> None:
    listed = {}
    for name, key in (("flights", FLIGHTS), ("every", EVERY), ("admin", ADMIN), ("ghost", GHOST)):
        answer = await guarded.http.get("/v1/services", headers=shown(key))
        listed[name] = [service["name"] for service in answer.json()["services"]]

    both = ["flight_delay", "leg_delay"]
    assert {"flights": ["flight_delay"], "every": both, "admin": both, "ghost": []} == listed


async def test_refusals_do_not_say_what_was_wrong_with_the_credential(guarded: Api) -> None:
    unknown, _ = new_key("other", ["admin"])
    wrong = [OLD, unknown, FLIGHTS[:-1], FLIGHTS + "A", FLIGHTS.upper(), "fsk_", "x", "a.b.c", "x" * 8193]
    answers = [await guarded.http.post("/v1/lookup", json=SOUND, headers=shown(key)) for key in wrong]

    assert {401} == {answer.status_code for answer in answers}
    assert 1 == len({(answer.content, str(answer.headers)) for answer in answers})
    assert 'Bearer realm="featurestore", error="invalid_token"' == answers[0].headers["www-authenticate"]
    assert "application/problem+json" == answers[0].headers["content-type"]
    assert "unauthenticated" == answers[0].json()["code"]


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", FLIGHTS)],
        [("authorization", f"Basic {FLIGHTS}")],
        [("authorization", f"Bearer{FLIGHTS}")],
        [("authorization", "Bearer ")],
        [("authorization", "")],
        [("authorization", f"Bearer {FLIGHTS}"), ("authorization", f"Bearer {FLIGHTS}")],
        [("authorization", f"Bearer {FLIGHTS}, Bearer {FLIGHTS}")],
        [("x-api-key", FLIGHTS)],
        [("cookie", f"authorization=Bearer {FLIGHTS}")],
    ],
)
async def test_a_credential_is_shown_in_one_way_only(guarded: Api, headers: list[tuple[str, str]]) -> None:
    assert 401 == (await guarded.http.get("/v1/services", headers=headers)).status_code


async def test_the_scheme_is_read_in_any_case_and_a_key_in_the_query_is_not_read(guarded: Api) -> None:
    assert 200 == (await guarded.http.get("/v1/services", headers={"authorization": f"bEARER  {FLIGHTS} "})).status_code
    assert 401 == (await guarded.http.get(f"/v1/services?access_token={FLIGHTS}&api_key={FLIGHTS}")).status_code


async def test_the_body_of_an_unknown_caller_is_not_read() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    app = create_app(load_settings(api_keys=lines(FLIGHTS_ENTRY), lake="none"))
    scope: dict[str, Any] = {
        "type": "http",
        "path": "/v1/lookup",
        "method": "POST",
        "headers": [],
        "query_string": b"",
        "client": None,
    }
    await app(scope, receive, send)

    assert 401 == sent[0]["status"]


async def test_a_key_ends_at_its_instant(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    key, entry = new_key("flights", ["lookup:*"], expires=clock.now() + 1)
    async with running(redis_url, tmp_path, clock, key=key, api_keys=lines(entry)) as api:
        assert 200 == (await api.http.get("/v1/services")).status_code
        clock.advance(1)
        assert 401 == (await api.http.get("/v1/services")).status_code


async def test_on_this_machine_nobody_is_asked_unless_it_is_configured(api: Api) -> None:
    document = (await api.http.get("/openapi.json")).json()

    assert 200 == (await api.http.get("/metrics")).status_code
    assert not any("security" in operation for path in document["paths"].values() for operation in path.values())


async def test_the_documentation_says_how_callers_show_who_they_are(guarded: Api) -> None:
    document = (await guarded.http.get("/openapi.json", headers=shown(FLIGHTS))).json()
    operations = {path: operation for path, found in document["paths"].items() for operation in found.values()}

    assert {"apiKey", "token"} == set(document["components"]["securitySchemes"])
    assert {"bearer"} == {scheme["scheme"] for scheme in document["components"]["securitySchemes"].values()}
    assert set(operations) - OPEN == {path for path, operation in operations.items() if "security" in operation}
    assert all({"401", "403"} <= set(operations[path]["responses"]) for path in set(operations) - OPEN)


# Tokens


def token_settings(path: Path, **changed: Any) -> dict[str, Any]:
    return {"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_keys_file": path, **changed}


async def test_a_token_lets_its_subject_in_until_it_ends(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(RSA.jwk))
    token = RSA.token(claims(clock.now())).decode()
    async with running(redis_url, tmp_path / "lake", clock, key=token, **token_settings(keys)) as api:
        assert 200 == (await api.lookup(SOUND)).status_code
        assert 403 == (await api.lookup(SOUND | {"service": "leg_delay"})).status_code
        assert 403 == (await api.http.get("/metrics")).status_code
        assert 401 == (await api.http.get("/metrics", headers=shown(FLIGHTS))).status_code
        clock.advance(400 * SECOND)
        assert 401 == (await api.lookup(SOUND)).status_code


async def test_keys_and_tokens_work_side_by_side(redis_url: str, tmp_path: Path, clock: ManualClock) -> None:
    keys = tmp_path / "keys.pem"
    keys.write_bytes(RSA.pem)
    settings = token_settings(keys, api_keys=lines(ADMIN_ENTRY))
    async with running(redis_url, tmp_path / "lake", clock, key=ADMIN, **settings) as api:
        assert 200 == (await api.http.get("/metrics")).status_code
        token = RSA.token(claims(clock.now())).decode()
        assert 200 == (await api.http.post("/v1/lookup", json=SOUND, headers=shown(token))).status_code


def access_with_tokens(clock: ManualClock, path: Path) -> Access:
    path.write_bytes(key_set(RSA.jwk))
    return access_to(load_settings(**token_settings(path)), clock)


def admitted(of: Access, credential: bytes, path: str = "/v1/services") -> Caller:
    return of.admit(path, [(b"authorization", b"Bearer " + credential)])


def test_a_checked_token_is_not_checked_again_and_few_are_kept(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = access_with_tokens(clock, tmp_path / "keys.json")
    monkeypatch.setattr(access, "MAX_RECENT", 3)
    tokens = [RSA.token(claims(clock.now(), jti=str(n))) for n in range(5)]
    callers = [admitted(guard, token) for token in tokens]

    assert 3 == len(guard._recent)
    assert callers[4] is admitted(guard, tokens[4])
    assert callers[0] is not admitted(guard, tokens[0])
    with pytest.raises(Refused):
        admitted(guard, RSA.token(claims(clock.now(), aud="other")))
    assert 3 == len(guard._recent)


async def test_a_key_that_the_issuer_withdraws_ends_its_tokens(clock: ManualClock, tmp_path: Path) -> None:
    path, other = tmp_path / "keys.json", SigningKey("RS256", "rsa-2")
    guard = access_with_tokens(clock, path)
    old, new = RSA.token(claims(clock.now())), other.token(claims(clock.now()))
    admitted(guard, old)
    following = asyncio.create_task(guard.run())
    try:
        path.write_bytes(key_set(other.jwk))
        await until(lambda: refused(guard, old))
        admitted(guard, new)
    finally:
        following.cancel()


def test_tokens_need_an_extra_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    monkeypatch.delitem(sys.modules, "featurestore.serving.tokens", raising=False)
    with pytest.raises(ConfigError) as caught:
        access_to(load_settings(**token_settings(tmp_path / "keys.json")), ManualClock())

    assert "featurestore[jwt]" in caught.value.hint


# Files


def refused(guard: Access, credential: bytes) -> bool:
    try:
        admitted(guard, credential)
    except Refused:
        return True
    return False


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(FOLLOW_SECONDS):
        while not holds():  # noqa: ASYNC110 - what is waited for is a file's content
            await asyncio.sleep(0.02)


def broken() -> float | None:
    return telemetry.REGISTRY.get_sample_value("fs_access_file_broken", {"setting": "FS_API_KEYS_FILE"})


@dataclass
class Followed:
    guard: Access
    path: Path

    def lets_in(self, key: str) -> bool:
        return not refused(self.guard, key.encode())


@pytest.fixture
async def followed(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Followed]:
    """A file with one key, while it is followed."""
    path = tmp_path / "keys"
    path.write_text(lines(FLIGHTS_ENTRY))
    guard = access_to(load_settings(api_keys_file=path), clock)
    following = asyncio.create_task(guard.run())
    yield Followed(guard, path)
    following.cancel()


async def test_a_changed_file_counts_without_a_restart(followed: Followed) -> None:
    assert (True, False) == (followed.lets_in(FLIGHTS), followed.lets_in(EVERY))

    followed.path.write_text(lines(EVERY_ENTRY))

    await until(lambda: followed.lets_in(EVERY))
    assert not followed.lets_in(FLIGHTS)


async def test_a_file_that_is_replaced_counts_too(followed: Followed) -> None:
    beside = followed.path.with_suffix(".new")
    beside.write_text(lines(EVERY_ENTRY))
    beside.rename(followed.path)

    await until(lambda: followed.lets_in(EVERY))


@pytest.mark.parametrize("content", [b"flights admin", b"\xff\xfe", b"#" * (MAX_BYTES + 1), None])
async def test_a_file_that_breaks_leaves_the_keys_in_force_and_is_told(
    followed: Followed, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    if content is None:
        followed.path.unlink()
    else:
        followed.path.write_bytes(content)

    await until(lambda: broken() == 1)
    assert followed.lets_in(FLIGHTS)
    assert 1 == len([record for record in caplog.records if record.levelno >= logging.ERROR])
    followed.path.write_text(lines(FLIGHTS_ENTRY, EVERY_ENTRY))
    await until(lambda: followed.lets_in(EVERY))
    assert 0 == broken()


def test_a_file_that_is_being_written_is_not_read_half(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one")
    file = WatchedFile("FS_API_KEYS_FILE", path, bytes.decode)
    for half in ("t", "tw"):
        path.write_text(half)
        assert not file.refresh()

    path.write_text("two")
    assert [False, True, False] == [file.refresh() for _ in range(3)]
    assert "two" == file.content


async def test_an_emptied_file_withdraws_every_key(followed: Followed) -> None:
    followed.path.write_text("")

    await until(lambda: not followed.lets_in(FLIGHTS))


# Settings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_nobody_is_asked_where_only_this_machine_listens(host: str) -> None:
    assert is_local(host)
    assert not access_to(load_settings(host=host), ManualClock()).required


@pytest.mark.parametrize("host", [EVERYWHERE, "::", "10.0.0.7", "example.com", "localhost.example.com", "169.254.1.1"])
def test_an_address_that_others_reach_needs_callers_that_are_known(host: str) -> None:
    assert not is_local(host)
    with pytest.raises(ConfigError) as caught:
        access_to(load_settings(host=host), ManualClock())

    assert "FS_AUTH" == caught.value.field
    assert {"FS_API_KEYS_FILE", "FS_JWT_ISSUER", "FS_AUTH=none"} <= set(caught.value.hint.replace(",", " ").split())
    assert access_to(load_settings(host=host, api_keys=lines(FLIGHTS_ENTRY)), ManualClock()).required
    assert not access_to(load_settings(host=host, auth="none"), ManualClock()).required


def test_callers_can_be_required_on_this_machine_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FS_AUTH=required"):
        access_to(load_settings(auth="required"), ManualClock())

    assert access_to(load_settings(auth="required", api_keys=lines(FLIGHTS_ENTRY)), ManualClock()).required


@pytest.mark.parametrize("missing", ["jwt_issuer", "jwt_audience", "jwt_keys_file"])
def test_issuer_audience_and_keys_come_together_or_not_at_all(tmp_path: Path, missing: str) -> None:
    settings = token_settings(tmp_path / "keys.json")
    del settings[missing]
    with pytest.raises(ConfigError) as caught:
        access_to(load_settings(**settings), ManualClock())

    assert f"FS_{missing.upper()}" == caught.value.field


@pytest.mark.parametrize("text", ["none", "HS256", "RS256,HS256", "RS256,,ES256", "RS256;ES256", "rs256"])
def test_no_setting_turns_on_a_secret_or_no_signature(text: str) -> None:
    with pytest.raises(ConfigError, match="FS_JWT_ALGORITHMS"):
        load_settings(jwt_algorithms=text)


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        access_to(load_settings(api_keys_file=tmp_path / "none"), ManualClock())


# Whatever is sent

GUARD = Access(Credentials(keyring=Keyring(ENTRIES)), ManualClock(NOW - DAY))


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"cookie", b"x-api-key"]), st.binary(max_size=100))))
def test_no_header_lets_in_whoever_has_no_key(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Refused) as caught:
        GUARD.admit("/v1/lookup", headers)

    assert 401 == caught.value.problem.status


@given(st.text(max_size=30).filter(lambda path: path not in access.OPEN_PATHS))
def test_no_path_but_the_probes_is_open(path: str) -> None:
    with pytest.raises(Refused):
        GUARD.admit(path, [])


async def test_keys_and_tokens_are_in_no_log_answer_or_metric(
    redis_url: str, tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(RSA.jwk))
    good, bad = RSA.token(claims(clock.now())).decode(), RSA.token(claims(clock.now(), aud="other")).decode()
    unknown, _ = new_key("other", ["admin"])
    settings = token_settings(keys, api_keys=lines(*ENTRIES), api_key=unknown)
    said = repr(load_settings(**settings))
    async with running(redis_url, tmp_path / "lake", clock, key=EVERY, **settings) as api:
        for secret in (EVERY, ADMIN, good, bad, unknown):
            for path in ("/v1/services", "/metrics", "/v1/nothing"):
                answer: httpx.Response = await api.http.get(path, headers=shown(secret))
                said += answer.text + str(answer.headers)
            said += (await api.http.post("/v1/lookup", json={"service": 5}, headers=shown(secret))).text
    said += caplog.text

    assert [] == [secret for secret in (EVERY, ADMIN, unknown, good, bad) if secret[-20:] in said]


def test_refusals_are_counted_by_reason() -> None:
    def count(reason: str) -> float:
        return telemetry.REGISTRY.get_sample_value("fs_access_refused_total", {"reason": reason}) or 0.0

    before = {reason: count(reason) for reason in ("missing", "malformed", "unknown_key", "admin")}
    for path, headers in (
        ("/metrics", []),
        ("/metrics", [(b"authorization", b"Basic x")]),
        ("/metrics", [(b"authorization", b"Bearer fsk_x")]),
        ("/metrics", [(b"authorization", b"Bearer " + EVERY.encode())]),
    ):
        with pytest.raises(Refused):
            GUARD.admit(path, headers)

    assert dict.fromkeys(before, 1.0) == {reason: count(reason) - before[reason] for reason in before}
