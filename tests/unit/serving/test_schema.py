"""The OpenAPI document and the lookups that are answered without it: neither may say what the other does not."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from featurestore.serving import requests, schema
from featurestore.serving.answers import SHAPES
from featurestore.serving.negotiation import ARROW, ENCODINGS, JSON
from featurestore.serving.problems import MEDIA_TYPE, TITLES
from featurestore.types import STATUSES
from tests.unit.serving.api import Api

BODY = {"service": "leg_delay", "entities": {"origin": ["JFK", None], "flight": [1, 2]}}
MODELS: Mapping[str, type[BaseModel]] = {
    "lean": schema.LeanAnswer,
    "full": schema.FullAnswer,
    "columns": schema.ColumnsAnswer,
}


async def documented(api: Api) -> dict[str, Any]:
    operation: dict[str, Any] = (await api.http.get("/openapi.json")).json()["paths"]["/v1/lookup"]["post"]
    return operation


async def test_the_fields_of_a_lookup_are_those_that_are_read(api: Api) -> None:
    body = (await documented(api))["requestBody"]["content"]

    assert [JSON] == list(body)
    assert list(requests.FIELDS) == list(body[JSON]["schema"]["properties"])
    assert ["service", "entities"] == body[JSON]["schema"]["required"]


async def test_the_forms_of_an_answer_are_those_that_are_written(api: Api) -> None:
    operation = await documented(api)
    answer = operation["responses"]["200"]
    parameters = {parameter["name"]: parameter["schema"]["enum"] for parameter in operation["parameters"]}

    assert {JSON, ARROW} == set(answer["content"])
    assert {"shape": list(SHAPES), "types": ["true", "false"]} == parameters
    assert list(ENCODINGS) == answer["headers"]["Content-Encoding"]["schema"]["enum"]
    assert sorted(SHAPES) == sorted(MODELS)
    assert len(MODELS) == len(answer["content"][JSON]["schema"]["anyOf"])


def test_the_statuses_of_values_are_those_there_are() -> None:
    assert sorted(STATUSES) == sorted(get_args(schema.StatusText))


@pytest.mark.parametrize("types", ["", "&types=true"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_each_shape_has_every_member_that_is_documented_and_no_other(api: Api, shape: str, types: str) -> None:
    answer = (await api.lookup(BODY, f"?shape={shape}{types}")).json()

    MODELS[shape].model_validate(answer, extra="forbid")
    optional = set() if types else {"types"}
    assert set(MODELS[shape].model_fields) - optional == set(answer)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (404, BODY | {"service": "leg_dela"}, {}),
        (413, BODY | {"request": {"text": "x" * requests.MAX_BODY}}, {}),
        (415, BODY, {"content-encoding": "gzip"}),
        (422, BODY | {"entities": {}}, {}),
    ],
)
async def test_each_refusal_is_documented_and_has_the_members_of_a_problem(
    api: Api, status: int, body: dict[str, Any], headers: dict[str, str]
) -> None:
    response = await api.http.post("/v1/lookup", json=body, headers=headers)

    assert (status, MEDIA_TYPE) == (response.status_code, response.headers["content-type"])
    assert [MEDIA_TYPE] == list((await documented(api))["responses"][str(status)]["content"])
    assert schema.ProblemDocument.model_validate(response.json(), extra="forbid").code in TITLES
