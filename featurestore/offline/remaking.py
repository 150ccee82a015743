"""Exports that are there already: whether they still are what their manifest says, and the same ones made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import Corrupt, UsageError
from featurestore.offline.asking import Asked, ask, key_columns
from featurestore.offline.lake import Lake
from featurestore.offline.making import Again, Means, Options, Settled, digest, make
from featurestore.offline.manifest import MANIFEST, Kind, Manifest, read_manifest
from featurestore.offline.query import SQL, query
from featurestore.offline.spine import read_spine
from featurestore.registry.catalog import Catalog
from featurestore.telemetry import package_version

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Verified:
    """An export that is what its manifest says."""

    manifest: Manifest
    bytes: int


def verify(directory: Path | str) -> Verified:
    """Reads every file of an export. Corrupt names the first that is missing, changed or has other rows, and files that
    no export wrote."""
    folder = Path(directory)
    manifest = read_manifest(folder)
    size = 0
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file():
            raise Corrupt(f"{path} is missing", hint="make the export again: export --from-manifest")
        found = _sha256(path)
        if found != file.sha256:
            raise Corrupt(
                f"{path} is not the file that was written: its SHA-256 is {found}, and {file.sha256} in {MANIFEST}",
                hint="make the export again: export --from-manifest",
            )
        rows = _rows(path)
        if rows != file.rows:
            raise Corrupt(f"{path} has {rows} rows, and {file.rows} in {MANIFEST}", hint="the manifest was changed")
        size += path.stat().st_size
    if sum(file.rows for file in manifest.files) != manifest.rows:
        raise Corrupt(f"the files of {folder} have not the {manifest.rows} rows of its {MANIFEST}")
    known = {MANIFEST, *(file.name for file in manifest.files)}
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if strangers:
        raise Corrupt(f"{folder / strangers[0]} is no part of the export", hint="readers of *.parquet would take it in")
    return Verified(manifest, size)


def remake(
    manifest: Manifest,
    out: Path | str,
    *,
    lake: Lake,
    catalog_at: Callable[[int], Catalog],
    spine: Any = None,
    means: Means | None = None,
) -> Manifest:
    """The export of a manifest again, with the same bytes: from the table versions that it names. `catalog_at` gives a
    revision of the registry, `spine` is the spine, where it is not at the path of then.

    UsageError where the spine, a view or the lake is not what it was; Corrupt where all is, and the bytes differ.
    """
    asked = _asked(manifest, catalog_at(manifest.registry_revision))
    means = means or Means()
    given = _spine(manifest, lake, spine, means)
    fields = {field.name: field.dtype for field in asked.service.request}
    found = digest(read_spine(given, key_columns(asked.views), manifest.time_column, fields).table)
    if found != manifest.spine_sha256:
        raise UsageError(
            f"the spine is not the one of the manifest: its SHA-256 is {found}, and was {manifest.spine_sha256}",
            hint="give the file of then; column names, types, values and their order must be the same",
            field="spine",
        )
    as_served = manifest.kind is Kind.AS_SERVED
    options = Options(manifest.time_column, manifest.status, manifest.as_of, as_served, manifest.spine)
    settled = Settled(manifest.lake_versions, manifest.buckets, manifest.registry_revision, manifest.created_at)

    def unchanged(made: Manifest) -> None:
        different = [a.name for a, b in zip(made.files, manifest.files, strict=False) if a != b]
        if different or len(made.files) != len(manifest.files):
            names = ", ".join(different[:3]) or "other files"
            raise Corrupt(
                f"the same export has other bytes now: {names}; made by {manifest.engine}, now by {package_version()}",
                hint="install the featurestore (and NumPy, pyarrow) of then",
            )

    again = Again(settled, unchanged)
    return make(asked, given, out, lake=lake, now=0, options=options, means=means, again=again)


def _spine(manifest: Manifest, lake: Lake, spine: Any, means: Means) -> Any:
    if spine is not None:
        return spine
    if manifest.spine.startswith(SQL):
        text = manifest.spine.removeprefix(SQL)
        return query(lake, text, memory=means.memory // 2, versions=manifest.lake_versions)
    if not manifest.spine:
        raise UsageError("the manifest names no file of the spine", hint="give it: --spine FILE", field="spine")
    return manifest.spine


def _asked(manifest: Manifest, catalog: Catalog) -> Asked:
    asked = ask(list(manifest.features) or f"{manifest.service}@{manifest.version}", catalog)
    found = {view.id: view.fingerprint for view in asked.views}
    if found != dict(manifest.views) or asked.service.fingerprint != manifest.service_fingerprint:
        raise UsageError(
            f"revision {catalog.revision} of this registry has other definitions than the manifest names",
            hint="is FS_LAKE the lake that the export was made from?", field="lake",
        )  # fmt: skip
    return asked


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise Corrupt(f"{path} is no Parquet file: {error}") from error
