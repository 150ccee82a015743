"""The client imports nothing of the API, so what both know is written twice, and has to be the same."""

from typing import get_args

from featurestore.client import call, http
from featurestore.serving import admission, front, negotiation, requests, server


def test_limits_and_names_are_those_of_the_api() -> None:
    assert requests.MAX_ROWS == call.MAX_ENTITIES
    assert negotiation.ARROW == call.ARROW
    assert front.LOOKUP_PATH == call.ARROW_PATH == call.LEAN_PATH.partition("?")[0]
    assert sorted(admission.CLASSES) == sorted(get_args(http.RequestClass))


def test_idle_connections_end_at_the_client_first() -> None:
    assert http.KEEP_ALIVE_SECONDS < server.KEEP_ALIVE_SECONDS
