"""The fault proxy in front of an echo server: each fault does what it says, and ends when it is told to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.parts.proxy import Proxy


def _echo(server: socket.socket, name: bytes) -> None:
    """Greets each connection with `name`, then sends back what comes."""
    while True:
        try:
            peer, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(peer, name), daemon=True).start()


def _answer(peer: socket.socket, name: bytes) -> None:
    with peer:
        try:
            peer.sendall(name)
            while data := peer.recv(1 << 16):
                peer.sendall(data)
        except OSError:
            return


@pytest.fixture
def servers() -> Iterator[tuple[int, int]]:
    """Ports of two echo servers, `a` and `b`."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    threads = [
        threading.Thread(target=_echo, args=(server, name), daemon=True)
        for server, name in zip(listening, (b"a", b"b"), strict=True)
    ]
    for thread in threads:
        thread.start()
    yield listening[0].getsockname()[1], listening[1].getsockname()[1]
    for server in listening:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
    for thread in threads:
        thread.join()


@pytest.fixture
def proxy(servers: tuple[int, int]) -> Iterator[Proxy]:
    with Proxy(servers[0], seed=1) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    """Connected and greeted."""
    with connected(proxy) as client:
        assert client.recv(1) == b"a"
        yield client


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def asked(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    found = b""
    while len(found) < len(data) and (more := client.recv(len(data) - len(found))):
        found += more
    return found


def test_bytes_pass_unchanged_in_both_directions(client: socket.socket) -> None:
    data = bytes(range(256)) * 4000
    threading.Thread(target=client.sendall, args=(data,)).start()
    found = b""
    while len(found) < len(data):
        found += client.recv(1 << 16)
    assert data == found


def test_a_delay_holds_every_reply_until_it_is_healed(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay(0.3)
    started = time.monotonic()
    assert asked(client, b"x") == b"x"
    assert time.monotonic() - started >= 0.3
    proxy.heal()
    started = time.monotonic()
    assert asked(client, b"y") == b"y"
    assert time.monotonic() - started < 0.3


def test_a_share_of_the_replies_is_delayed(proxy: Proxy, client: socket.socket) -> None:
    proxy.delay(0.05, share=0.5)
    late = 0
    for _ in range(20):
        started = time.monotonic()
        asked(client, b"x")
        late += time.monotonic() - started >= 0.05
    assert 0 < late < 20


@pytest.mark.parametrize("requests", [True, False])
def test_what_a_black_hole_held_back_arrives_afterwards(proxy: Proxy, client: socket.socket, requests: bool) -> None:
    proxy.black_hole(requests=requests, replies=not requests)
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        asked(client, b"held")
    client.settimeout(5)
    proxy.heal()
    assert client.recv(4) == b"held"


def test_a_reset_ends_connections_and_takes_new_ones(proxy: Proxy, client: socket.socket) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with connected(proxy) as again:
        assert again.recv(1) == b"a"


def test_a_refusing_proxy_is_as_good_as_no_server(proxy: Proxy, client: socket.socket) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connected(proxy)
    proxy.heal()
    with connected(proxy) as again:
        assert again.recv(1) == b"a"


def test_a_reply_is_cut_after_the_given_bytes(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut_after(3)
    assert asked(client, b"12") == b"12"
    client.sendall(b"345")
    with pytest.raises(ConnectionResetError):
        _all_of(client)


def _all_of(client: socket.socket) -> bytes:
    """Up to an end in order; at most one byte passes before the reset, which may overtake it."""
    found = b""
    while data := client.recv(16):
        found += data
        assert found == b"3"
    return found


def test_a_failover_leads_later_connections_to_another_server(
    proxy: Proxy, client: socket.socket, servers: tuple[int, int]
) -> None:
    proxy.retarget(servers[1])
    with connected(proxy) as again:
        assert again.recv(1) == b"b"
