"""Text at the border between states (int64 codes) and bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from featurestore.engine.array import ragged
from featurestore.engine.columns import StringPool
from featurestore.engine.opening import REREAD
from featurestore.engine.sections import LENGTH_BITS, LENGTH_MASK
from featurestore.errors import Corrupt


def pool_encoder(pool: StringPool, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of a pool → (UTF-8 end to end, lengths); code -1 has no bytes."""
    array = pa.array(pool.texts(codes), pa.string()).fill_null("")
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int32)[: len(array) + 1].astype(np.int64)
    text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return text[: bounds[-1]], np.diff(bounds)


def resolve(buffer: bytes, references: np.ndarray) -> np.ndarray:
    """References into a buffer of packed values → object array of str."""
    starts, lengths = references >> LENGTH_BITS, references & LENGTH_MASK
    texts = np.empty(references.shape, object)
    try:
        texts[:] = [buffer[a : a + n].decode() for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    except UnicodeDecodeError as error:
        raise Corrupt("a stored text is no UTF-8", hint=REREAD) from error
    return texts


def intern_references(buffer: bytes, references: np.ndarray, pool: StringPool) -> np.ndarray:
    """References into a buffer of packed values (any shape) → codes of a pool."""
    flat = references.reshape(-1)
    lengths = flat & LENGTH_MASK
    row, place = ragged(lengths)
    data = np.frombuffer(buffer, np.uint8)[(flat >> LENGTH_BITS)[row] + place]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    array = pa.StringArray.from_buffers(flat.size, pa.py_buffer(bounds), pa.py_buffer(data))
    return pool.intern(array)[0].reshape(references.shape)
