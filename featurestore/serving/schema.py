"""The read API's documents as OpenAPI describes them. Lookups themselves are read and written without these."""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from featurestore.serving.problems import MEDIA_TYPE
from featurestore.serving.requests import MAX_ROWS, MAX_TEXT

StatusText = Literal[
    "ok", "default", "not_found", "expired", "stale", "late_pipeline", "last_known", "deadline", "unavailable"
]
KeyColumn = Annotated[
    list[str | int | bool | None],
    Field(max_length=MAX_ROWS, description="One value per row; null is answered as `not_found`."),
]


FieldText = Annotated[str, Field(max_length=MAX_TEXT)]
FieldValue = FieldText | int | float | bool | None
FieldColumn = Annotated[list[FieldValue], Field(max_length=MAX_ROWS)]


class LookupBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"service": "flight_delay", "entities": {"origin": ["JFK", "LGA"]}},
                {
                    "service": "flight_delay@prod",
                    "entities": {"origin": ["JFK"], "carrier": ["B6"]},
                    "at": "2013-07-04T12:00:00Z",
                    "budget_ms": 20,
                },
                {
                    "service": "fraud",
                    "entities": {"user_id": [7, 8]},
                    "request": {"amount": [12.5, 3], "country": "DE"},
                },
            ]
        },
    )

    service: str = Field(description="`name`, `name@alias` or `name@version`; a bare name means `@prod`.")
    entities: dict[str, KeyColumn] = Field(
        description="Every key column of the service's views, as columns of equal length: row i is the i-th of each.",
        min_length=1,
    )
    at: datetime | None = Field(
        None, description="RFC 3339 with a zone: values as of this instant. null: everything applied so far."
    )
    budget_ms: float | None = Field(
        None, gt=0, description="Milliseconds the caller can wait. What is not there by then has status `deadline`."
    )
    request: dict[str, FieldColumn | FieldValue] | None = Field(
        None,
        description="Fields of the request that the service's own features use: each a column, where row i belongs to "
        "the i-th entity, or one value for every row. `GET /v1/services` lists them.",
    )


class _Envelope(BaseModel):
    service: str
    version: int
    revision: int = Field(description="The registry revision that answered.")
    at: datetime = Field(description="The instant the values hold for.")
    spent_ms: float
    source: Literal["online", "lake", "mixed"] = Field(description="Where the rows were computed.")
    features: list[str] = Field(
        description="Names in the order of the values: `view.feature`, and `service.feature` for the service's own."
    )
    types: dict[str, str] = Field(
        {}, description="Of key columns and features; only where the query has `types=true`. A list is `list<int>`."
    )


class LeanRow(BaseModel):
    values: list[Any]
    status: StatusText | list[StatusText] = Field(description="One for the row or, where they differ, one per value.")


class LeanAnswer(_Envelope):
    rows: list[LeanRow]


class FullValue(BaseModel):
    value: Any
    status: StatusText
    as_of: datetime | None = Field(description="Event time the value stands on.")
    age_seconds: float | None


class FullRow(BaseModel):
    entity: dict[str, str | int | bool | None]
    features: dict[str, FullValue]


class FullAnswer(_Envelope):
    rows: list[FullRow]


class AnswerColumn(BaseModel):
    values: list[Any]
    status: StatusText | list[StatusText] = Field(description="One for the column or, where they differ, one per row.")


class ColumnsAnswer(_Envelope):
    columns: list[AnswerColumn]


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; decide by this one.")
    field: str = Field("", description="Dotted path to what is wrong in the request.")
    hint: str = Field("", description="What to do next.")
    near: list[str] = Field([], description="Names that may have been meant.")
    instance: str = Field("", description="Names this occurrence in the server's log.")


class EntityKey(BaseModel):
    name: str
    type: str


class RequestFieldSummary(BaseModel):
    name: str
    type: str
    required: bool
    default: str | int | float | bool | None = Field(description="Stands where the field is absent or null.")


class ServiceSummary(BaseModel):
    name: str
    versions: list[int]
    aliases: dict[str, int]
    owner: str
    description: str
    entities: list[EntityKey] = Field(description="Key columns of the version that `@prod`, else the newest, names.")
    request: list[RequestFieldSummary] = Field(description="Fields of the request, likewise.")
    features: list[str]


class Services(BaseModel):
    revision: int
    services: list[ServiceSummary]


class FeatureSummary(BaseModel):
    name: str
    type: str
    many: bool


class ViewSummary(BaseModel):
    name: str
    version: int
    fingerprint: str
    entity: str
    keys: list[EntityKey]
    source: str
    freshness_seconds: float | None
    ttl_seconds: float | None
    owner: str
    description: str
    features: list[FeatureSummary]


class Views(BaseModel):
    revision: int
    views: list[ViewSummary]


class PartitionStatus(BaseModel):
    status: StatusText
    behind_seconds: float
    beat_age_seconds: float
    position: int
    end: int
    waiting_for: str
    stopped: str
    rebuilding: str = Field(description="Who computes the view's values anew, and since when; empty where nobody does.")
    incomplete: str = Field(description="What of the lake's history the values lack; empty where they lack nothing.")


class ServerStatus(BaseModel):
    revision: int | None
    views: dict[str, dict[int, PartitionStatus]] = Field(description="By view and fold partition.")


class Check(BaseModel):
    name: str
    ok: bool
    detail: str


class Readiness(BaseModel):
    ready: bool
    checks: list[Check]


class Liveness(BaseModel):
    status: Literal["ok"]


_SCHEMES = {
    "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key, as `fsk_…`."},
    "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A token of the issuer."},
}


def add_security(document: dict[str, Any], open_paths: Container[str], *, required: bool) -> None:
    """How callers say who they are, into an OpenAPI document. Each scheme will do by itself."""
    document.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for path, operations in document["paths"].items():
        for operation in operations.values() if required and path not in open_paths else ():
            operation["security"] = [{name: []} for name in _SCHEMES]
            operation["responses"] |= {str(k): v for k, v in problem_responses(401, 403).items()}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of problem documents for these HTTP statuses."""
    schema = ProblemDocument.model_json_schema()
    return {status: {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}
