import pytest
from redis import exceptions as redis_errors

from featurestore.errors import ConfigError, Corrupt, FeatureStoreError, StoreRefused, Unavailable
from featurestore.online.connection import parse_endpoint, translated


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("localhost:6379", "redis://"),
        ("cache.example:6379", "redis://cache.example/3"),
        ("cache.example:7000", "rediss://user:secret@cache.example:7000?ssl_ca_certs=/ca.pem"),
        ("/run/redis.sock", "unix://:secret@/run/redis.sock?db=2"),
        ("::1:6380", "redis://[::1]:6380"),
    ],
)
def test_an_address_shows_where_and_not_who(address: str, url: str) -> None:
    endpoint = parse_endpoint(url)
    assert address == endpoint.address
    assert "secret" not in repr(endpoint)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "scheme"),
        ("localhost:6379", "scheme"),
        ("http://localhost", "scheme"),
        ("unix://", "scheme"),
        ("redis://:se/cret@host", "cannot be read"),
        ("redis://:secret@host:notaport", "cannot be read"),
        ("redis://:secret@host:99999", "cannot be read"),
        ("redis://:secret@[::1", "cannot be read"),
        ("redis://host/first", "no database by number"),
        ("redis://host?db=first", "no database by number"),
        ("redis://host?socket_timeout=900", "parameter 'socket_timeout'"),
        ("redis://host?decode_responses=1", "parameter 'decode_responses'"),
    ],
)
def test_what_is_no_redis_url_is_refused_without_repeating_it(url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_endpoint(url)
    assert "FS_REDIS" == caught.value.field
    assert "cret" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("expected", "problem", "error"),
    [
        (Unavailable, "does not answer", redis_errors.ConnectionError("Error 111 connecting")),
        (Unavailable, "does not answer", ConnectionResetError("reset")),
        (Unavailable, "did not answer in time", redis_errors.TimeoutError("Timeout reading")),
        (Unavailable, "is loading", redis_errors.BusyLoadingError("Redis is loading")),
        (Unavailable, "out of memory", redis_errors.OutOfMemoryError("command not allowed")),
        (
            Unavailable,
            "out of memory",
            redis_errors.ResponseError("Error running script: -OOM command not allowed when"),
        ),
        (Unavailable, "cannot save", redis_errors.ResponseError("MISCONF Redis is configured to save")),
        (Unavailable, "held up by a script", redis_errors.ResponseError("BUSY Redis is busy running a script")),
        (Unavailable, "takes no writes", redis_errors.ReadOnlyError("You can't write against a read only replica.")),
        (StoreRefused, "refuses this user", redis_errors.AuthenticationError("invalid username-password pair")),
        (StoreRefused, "refuses this user", redis_errors.NoPermissionError("no permissions")),
        (StoreRefused, "node of a cluster", redis_errors.MovedError("3999 127.0.0.1:6381")),
        (StoreRefused, "does not know a command", redis_errors.ResponseError("unknown command 'EVALSHA'")),
        (Corrupt, "holds something else", redis_errors.ResponseError("WRONGTYPE Operation against a key")),
        (Unavailable, "refused a command", redis_errors.ResponseError("something new")),
    ],
)
def test_each_error_of_the_client_has_one_meaning(
    expected: type[FeatureStoreError], problem: str, error: Exception
) -> None:
    with pytest.raises(expected, match=f"Redis at host:1 .*{problem}") as caught, translated("host:1"):
        raise error
    assert caught.value.hint
    assert error is caught.value.__cause__


def test_what_a_server_says_is_cut_to_one_short_line() -> None:
    with pytest.raises(Unavailable) as caught, translated("host:1"):
        raise redis_errors.ResponseError("x" * 10_000 + "\nsecond line")
    assert len(caught.value.message) < 300


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), translated("host:1"):
        raise ZeroDivisionError
