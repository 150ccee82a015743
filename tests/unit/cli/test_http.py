"""What the read API answers, as errors of this package."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from featurestore.cli import http
from featurestore.errors import (
    AccessDenied,
    ConfigError,
    FeatureStoreError,
    InvalidRequest,
    NotFound,
    Unavailable,
    UsageError,
)

Serve = Callable[[int, bytes], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers everything with one status and body; returns its URL."""
    servers: list[HTTPServer] = []

    def start(status: int, body: bytes) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "expected", "exit_code"),
    [
        (404, "not_found", NotFound, 1),
        (422, "invalid_request", InvalidRequest, 2),
        (422, "at_out_of_range", UsageError, 2),
        (503, "unavailable", Unavailable, 1),
        (500, "internal", FeatureStoreError, 1),
    ],
)
def test_a_problem_document_becomes_the_error_it_stands_for(
    serve: Serve, status: int, code: str, expected: type[FeatureStoreError], exit_code: int
) -> None:
    problem = {"code": code, "detail": "no such thing", "hint": "try another", "field": "service", "near": ["thing"]}
    with pytest.raises(expected) as caught:
        http.get(serve(status, json.dumps(problem).encode()))

    assert caught.value.message == "no such thing; did you mean 'thing'?"
    assert caught.value.hint == "try another"
    assert caught.value.exit_code == exit_code


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (502, b"bad gateway"), (404, b'{"error": "x"}')])
def test_another_kind_of_server_is_recognized(serve: Serve, status: int, body: bytes) -> None:
    with pytest.raises(Unavailable, match="is no read API"):
        http.get(serve(status, body))


def test_the_proxies_of_the_environment_are_not_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert http.get(serve(200, b'{"a": 1}')) == {"a": 1}
    assert http.is_ok(serve(200, b"{}"))


def test_a_server_that_is_not_ready_is_not_ok(serve: Serve) -> None:
    assert not http.is_ok(serve(503, b"{}"))


class Asked(BaseHTTPRequestHandler):
    """Keeps what it was shown, and sends everyone away to itself."""

    shown: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.shown.append((self.path, self.headers["authorization"]))
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("location", "/elsewhere")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def asked() -> Iterator[str]:
    """URL of a server that keeps what it was shown in `Asked.shown`."""
    Asked.shown.clear()
    with HTTPServer(("127.0.0.1", 0), Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_key_of_the_environment_is_shown(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", " fsk_abc\n"):
        monkeypatch.setenv("FS_API_KEY", value)
        http.get(asked + "/")

    assert [("/", None), ("/", "Bearer fsk_abc")] == Asked.shown


def test_a_key_is_not_taken_along_to_wherever_a_server_points(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_API_KEY", "fsk_abc")
    with pytest.raises(Unavailable, match="is no read API"):
        http.get(asked + "/away")

    assert ["/away"] == [path for path, _ in Asked.shown]


@pytest.mark.parametrize("value", ["a b", "a\nb: c", "schlüssel"])
def test_a_key_that_would_change_the_request_is_refused(
    asked: str, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FS_API_KEY", value)
    with pytest.raises(ConfigError) as caught:
        http.get(asked + "/")

    assert (True, []) == (value not in str(caught.value), Asked.shown)


@pytest.mark.parametrize(
    ("status", "key", "hint"),
    [
        (401, "", "set FS_API_KEY to a key"),
        (401, "fsk_abc", "the key in FS_API_KEY is not one of the API's"),
        (403, "fsk_abc", "it needs the scope admin; the key in FS_API_KEY has not"),
    ],
)
def test_a_refused_key_is_explained(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int, key: str, hint: str
) -> None:
    monkeypatch.setenv("FS_API_KEY", key)
    problem = {"code": "forbidden", "detail": "not for you", "hint": "it needs the scope admin"}
    with pytest.raises(AccessDenied) as caught:
        http.get(serve(status, json.dumps(problem).encode()))

    assert ("not for you", hint, 1) == (caught.value.message, caught.value.hint, caught.value.exit_code)
