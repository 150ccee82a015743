"""A stock Feast with its DuckDB store joins latest values to a spine: `PYTHON feast_history.py FOLDER`.

Run by an interpreter that has `feast[duckdb]`, so that its dependencies need not agree with ours. FOLDER holds
`events.parquet` and `spine.parquet` as `tests.bench.export` makes them; Feast's rows are written beside them. Prints
the seconds of each of two runs, Parquet to Parquet: the first also sets up what a process does once.
"""

import sys
from pathlib import Path
from time import perf_counter

import pandas as pd
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, String

_CONFIG = """
project: bench
registry: {folder}/registry.db
provider: local
offline_store: {{type: duckdb}}
entity_key_serialization_version: 3
"""


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "feature_store.yaml").write_text(_CONFIG.format(folder=folder))
    store = FeatureStore(repo_path=str(folder))
    carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
    view = FeatureView(
        name="flights",
        entities=[carrier],
        ttl=None,
        schema=[Field(name="carrier", dtype=String), Field(name="distance", dtype=Float64)],
        source=FileSource(path=str(folder / "events.parquet"), timestamp_field="event_time"),
    )
    store.apply([carrier, view])
    for _ in range(2):
        began = perf_counter()
        spine = pd.read_parquet(folder / "spine.parquet").rename(columns={"event_time": "event_timestamp"})
        found = store.get_historical_features(spine, ["flights:distance"]).to_arrow()
        pq.write_table(found, folder / "feast.parquet")
        print(perf_counter() - began)


if __name__ == "__main__":
    main()
