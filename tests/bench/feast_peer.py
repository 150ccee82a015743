"""A stock Feast with the same entities and features, on the same Redis: `PYTHON feast_peer.py FOLDER REDIS_PORT PORT`.

Run by an interpreter that has `feast[redis]`, so that its dependencies need not agree with ours. FOLDER holds
`values.parquet`: the entity key, `event_timestamp`, and one column per feature. Serves with one worker that is never
restarted, which is the best case: by default Feast ends its worker after a thousand requests.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.cli.cli import cli
from feast.types import Float64, Int64, String

_TYPES = {"i": Int64, "f": Float64, "O": String}
_CONFIG = """
project: bench
registry: {folder}/registry.db
provider: local
online_store: {{type: redis, connection_string: "127.0.0.1:{redis}"}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""


def main() -> None:
    folder, redis, port = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    values = pd.read_parquet(folder / "values.parquet")
    key, time, *features = values.columns
    (folder / "feature_store.yaml").write_text(_CONFIG.format(folder=folder, redis=redis))
    store = FeatureStore(repo_path=str(folder))
    entity = Entity(name=key, join_keys=[key], value_type=ValueType.STRING)
    view = FeatureView(
        name="airport_delay",
        entities=[entity],
        ttl=timedelta(days=1),
        schema=[Field(name=key, dtype=String), *(Field(name=f, dtype=_TYPES[values[f].dtype.kind]) for f in features)],
        source=FileSource(path=str(folder / "values.parquet"), timestamp_field=time),
    )
    store.apply([entity, view])
    store.write_to_online_store("airport_delay", values)
    words = ["serve", "--port", port, "--workers", "1", "--max-requests", "0", "--no-access-log"]
    os.chdir(folder)
    cli(words)


if __name__ == "__main__":
    main()
