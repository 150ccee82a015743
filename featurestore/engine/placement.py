"""Which partition an entity belongs to: a hash of its key, the same for those who fold its events and who read them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash


def partitions_of(keys: pa.Array, count: int, null_partition: int) -> np.ndarray:
    """`int64[n]`: the entity partition of each canonical key, `null_partition` where the key is null."""
    encoded = keys.dictionary_encode()
    texts = encoded.dictionary.cast(pa.binary()).to_pylist()
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, texts), np.uint64, len(texts))
    table = np.append((hashes % np.uint64(count)).astype(np.int64), null_partition)
    targets: np.ndarray = table[encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False)]
    return targets
