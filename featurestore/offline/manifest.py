"""What an export says about itself: enough to tell whether two training sets are the same, and from what they came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from featurestore.errors import Corrupt
from featurestore.offline.visibility import Known

MANIFEST = "manifest.json"
FORMAT = "featurestore-export/1"


class Kind(StrEnum):
    """Which events count at T: every one with `event_time <= T`, or of these what could be read online by T."""

    EXACT = "exact"
    AS_SERVED = "as_served"


@dataclass(frozen=True, slots=True)
class ExportedFile:
    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """`files` are in row order: read one after the other they are the spine's rows, in the spine's order."""

    kind: Kind
    service: str
    version: int
    rows: int
    time_column: str
    columns: tuple[str, ...]
    """Feature columns, in order, `<view>.<feature>`."""
    files: tuple[ExportedFile, ...]
    views: Mapping[str, str]
    """`view@version` → fingerprint of what the view means."""
    service_fingerprint: str
    registry_revision: int
    lake_versions: Mapping[str, int]
    """Table → the Delta version that was read."""
    spine_sha256: str
    """Of the spine as an Arrow IPC stream."""
    created_at: str
    engine: str
    """Version of featurestore."""
    visibility: Mapping[str, Known] | None = None
    """Of `as_served`: `view@version` → from where the instants of its events are."""
    features: tuple[str, ...] = ()
    """The list that was asked for, `view@version.feature`; empty for a service."""
    status: bool = False
    as_of: bool = False
    buckets: int = 1
    """Into how many the work was divided: of float sums, the last bit may depend on it."""
    spine: str = ""
    """The path that was given, where it was one."""
    format: str = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def read_manifest(directory: Path | str) -> Manifest:
    """The manifest of an export. Raises Corrupt where it is not one of ours."""
    return read_manifest_file(Path(directory) / MANIFEST)


def read_manifest_file(path: Path) -> Manifest:
    """As `read_manifest`, wherever the file is."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}")
        files = tuple(ExportedFile(**file) for file in data.pop("files"))
        kind, told = Kind(data.pop("kind")), data.pop("visibility", None)
        visibility = None if told is None else {view: Known(**counts) for view, counts in told.items()}
        columns, features = tuple(data.pop("columns")), tuple(data.pop("features", ()))
        return Manifest(kind=kind, files=files, columns=columns, features=features, visibility=visibility, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{path} is no manifest of an export: {error}") from error
