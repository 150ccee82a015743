import pyarrow as pa
import pytest

from featurestore.clock import parse_instant
from featurestore.contracts.instants import parse_instants


@pytest.mark.parametrize(
    "text",
    [
        "2013-01-01T05:17:00Z",
        "2013-01-01t05:17:00z",
        "2013-01-01 05:17:00.1Z",
        "2013-01-01T05:17:00.123456Z",
        "2012-02-29T23:59:59.999999+14:00",
        "2000-02-29T00:00:00-23:59",
        "1900-03-01T00:00:00+00:00",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59.999999Z",
        "1969-12-31T23:59:59.5-00:30",
    ],
)
def test_common_forms_are_parsed_as_the_clock_parses_them(text: str) -> None:
    micros, good = parse_instants(pa.array(["x", text, None, text + text]))
    assert [False, True, False, False] == good.tolist()
    assert [0, parse_instant(text), 0, 0] == micros.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "2013-01-01T05:17:00",
        "2013-01-01T05:17:0Z0",
        "2013-13-01T05:17:00Z",
        "2013-00-01T05:17:00Z",
        "2013-02-29T05:17:00Z",
        "1900-02-29T05:17:00Z",
        "2013-01-00T05:17:00Z",
        "2013-01-01T24:00:00Z",
        "2013-01-01T05:60:00Z",
        "2013-01-01T05:17:60Z",
        "2013-01-01T05:17:00.Z",
        "2013-01-01T05:17:00,5Z",
        "2013/01/01T05:17:00Z",
        "2013-01-01T05:17:00+24:00",
        "2013-01-01T05:17:00+0x:00",
        "2013-01-01T05:17:00*01:00",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
    ],
)
def test_what_the_clock_refuses_is_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_instant(text)
    assert [False] == parse_instants(pa.array([text]))[1].tolist()


def test_columns_without_text_are_fine() -> None:
    for column in (pa.array([], pa.string()), pa.array([None, None], pa.string()), pa.array(["", ""])):
        assert [False] * len(column) == parse_instants(column)[1].tolist()
