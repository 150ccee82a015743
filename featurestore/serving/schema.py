"""The read API's documents as OpenAPI describes them. Lookups themselves are read and written without these."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from featurestore.serving.problems import MEDIA_TYPE
from featurestore.serving.requests import MAX_ROWS

StatusText = Literal[
    "ok", "default", "not_found", "expired", "stale", "late_pipeline", "last_known", "deadline", "unavailable"
]
KeyColumn = Annotated[
    list[str | int | bool | None],
    Field(max_length=MAX_ROWS, description="One value per row; null is answered as `not_found`."),
]


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
    request: dict[str, Any] | None = Field(
        None, max_length=0, description="Fields of the request itself; no feature takes any yet."
    )


class _Envelope(BaseModel):
    service: str
    version: int
    revision: int = Field(description="The registry revision that answered.")
    at: datetime = Field(description="The instant the values hold for.")
    spent_ms: float
    source: Literal["online", "lake", "mixed"] = Field(description="Where the rows were computed.")
    features: list[str] = Field(description="Names, `view.feature`, in the order of the values.")


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


class ServiceSummary(BaseModel):
    name: str
    versions: list[int]
    aliases: dict[str, int]
    owner: str
    description: str
    entities: list[EntityKey] = Field(description="Key columns of the version that `@prod`, else the newest, names.")
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


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of problem documents for these HTTP statuses."""
    schema = ProblemDocument.model_json_schema()
    return {status: {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses}
