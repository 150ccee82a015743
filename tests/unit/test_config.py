import logging
import os

import pytest

from featurestore.config import Settings, load_settings, redact, unknown_variables, variable
from featurestore.errors import ConfigError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.upper().startswith("FS_")]:
        monkeypatch.delenv(name)


def test_every_field_says_what_it_does() -> None:
    silent = [name for name, field in Settings.model_fields.items() if not (field.description or "").endswith(".")]

    assert silent == []


def test_defaults_hold_without_any_variable() -> None:
    settings = load_settings()

    assert ("127.0.0.1:9092", "redis://127.0.0.1:6379/0", "lake") == (settings.kafka, settings.redis, settings.lake)
    assert ("auto", "json", "fs") == (settings.compute, settings.log, settings.project)
    assert settings.state_bytes == 1 << 30


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "FS_KAFKA": "a:9092, b:9093",
        "FS_REDIS": "embedded",
        "FS_LAKE": "s3://bucket/lake",
        "FS_STATE_BYTES": "64MiB",
        "FS_LAKE_INTERVAL_SECONDS": "0.5",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    settings = load_settings()

    assert settings.kafka == "a:9092,b:9093"
    assert (settings.redis, settings.lake) == ("embedded", "s3://bucket/lake")
    assert (settings.state_bytes, settings.lake_interval_seconds) == (64 << 20, 0.5)


def test_an_empty_variable_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_KAFKA", "")

    assert load_settings().kafka == "127.0.0.1:9092"


def test_an_override_wins_and_none_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_PORT", "9000")

    assert load_settings(port=9001).port == 9001
    assert load_settings(port=None).port == 9000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FS_KAFKA", "localhost"),
        ("FS_KAFKA", "localhost:99999"),
        ("FS_KAFKA", "a:1,,b:2"),
        ("FS_KAFKA", "kafka://a:1"),
        ("FS_REDIS", "localhost:6379"),
        ("FS_REDIS", "http://localhost"),
        ("FS_COMPUTE", "cuda"),
        ("FS_LOG", "xml"),
        ("FS_PORT", "eighty"),
        ("FS_STOP_SHARE", "0"),
        ("FS_STOP_SHARE", "nan"),
        ("FS_BATCH_RECORDS", "-1"),
        ("FS_STATE_BYTES", "1"),
        ("FS_PROJECT", "Mine!"),
        ("FS_AUTH", "off"),
        ("FS_JWT_ALGORITHMS", "none"),
        ("FS_JWT_ALGORITHMS", "RS256,HS256"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        load_settings()

    assert caught.value.field == name


def test_all_wrong_values_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_LOG", "xml")
    monkeypatch.setenv("FS_PORT", "-1")

    with pytest.raises(ConfigError, match=r"FS_LOG: .*; FS_PORT: "):
        load_settings()


@pytest.mark.parametrize(("name", "service"), [("FS_PORT", "fs"), ("FS_METRICS_PORT", "fs-metrics")])
def test_the_port_that_kubernetes_injects_is_explained(
    monkeypatch: pytest.MonkeyPatch, name: str, service: str
) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.7:8000")

    with pytest.raises(ConfigError) as caught:
        load_settings()

    assert f"`{service}`" in caught.value.hint
    assert "enableServiceLinks" in caught.value.hint


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(ConfigError, match="FS_KAFKAA"):
        load_settings(kafkaa="a:1")


def test_an_unknown_variable_warns_with_a_near_match(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FS_SHUFFLE_PARTITION", "8")

    with caplog.at_level(logging.WARNING):
        load_settings()

    assert [record.getMessage() for record in caplog.records] == [
        "unknown environment variable FS_SHUFFLE_PARTITION; did you mean FS_SHUFFLE_PARTITIONS?"
    ]


def test_known_and_foreign_variables_are_not_reported() -> None:
    environ = {variable(field): "x" for field in Settings.model_fields} | {"PATH": "/bin", "FSX": "1", "fs_log": "json"}

    assert unknown_variables(environ) == {}


def test_a_password_is_in_no_repr_and_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_REDIS", "rediss://app:hunter2@store:6379/0")
    monkeypatch.setenv("FS_LAKE", "s3://key:hunter2@bucket/lake")
    settings = load_settings()

    assert settings.redis == "rediss://app:hunter2@store:6379/0"
    assert "rediss://app:***@store:6379/0" in repr(settings)
    assert "hunter2" not in repr(settings) + str(settings)

    monkeypatch.setenv("FS_REDIS", "htp://app:hunter2@store")
    with pytest.raises(ConfigError) as caught:
        load_settings()

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("cannot reach redis://u:p@h and redis://u:q@g", "cannot reach redis://u:***@h and redis://u:***@g"),
        ("redis://:p@ss@h/0", "redis://:***@h/0"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("unix:///tmp/a:b@c", "unix:///tmp/a:b@c"),
    ],
)
def test_redact_masks_the_password_only(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1


def test_a_key_is_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_API_KEY", "fsk_hunter2")

    assert "hunter2" not in repr(load_settings()) + str(load_settings()) + load_settings().model_dump_json()
