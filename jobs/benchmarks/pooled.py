"""Pooled vectors in Parquet: plain bytes, as the store keeps them, beside fixed-size lists of float32."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns, rate
from jobs.benchmarks.workbench import Workbench

Vectors = dict[str, NDArray[np.float32]]
_ROW_GROUP = 256  # as a job writes them


def measure(bench: Workbench) -> Measurement:
    """Read, write and size of one table with a column a tap; float32 means of real features, again and again."""
    means = {tap: values.mean((2, 3), np.float32) for (_, tap), values in bench.features.items()}
    generator = np.random.Generator(np.random.Philox(2))
    vectors: Vectors = {}
    for tap, values in means.items():
        repeated = np.resize(values, (bench.scale.vectors, values.shape[1]))
        # Or a row that comes again would compress to nothing.
        vectors[tap] = repeated * (1 + generator.random(repeated.shape, np.float32) / np.float32(10))
    plain, lists = _write(_plain(vectors)), _write(_lists(vectors))
    for tap, values in vectors.items():
        assert np.array_equal(_read_plain(plain)[tap], values) and np.array_equal(
            _read_lists(lists)[tap], values
        )
    megabytes = sum(values.nbytes for values in vectors.values()) / 1e6
    found = Measurement(facts={"rows": bench.scale.vectors, "megabytes": megabytes})
    work: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "read to numpy": (lambda: _read_plain(plain), lambda: _read_lists(lists)),
        "write from numpy": (lambda: _write(_plain(vectors)), lambda: _write(_lists(vectors))),
    }
    for what, (ours, other) in work.items():
        timed = in_turns(bench.scale.repeats + 2, ours=rate(megabytes, ours), other=rate(megabytes, other))
        found.lines.append(Line(what, "MB/s", "higher", *_figures(timed["ours"], timed["other"])))
    found.lines.append(Line("size", "B", "lower", *_figures([float(len(plain))], [float(len(lists))])))
    return found


def _figures(ours: list[float], other: list[float]) -> tuple[Figure, Figure]:
    return Figure("plain bytes", ours), Figure("fixed-size lists", other)


def _plain(vectors: Vectors) -> pa.Table:
    return pa.table(
        {tap: pa.array([row.tobytes() for row in values], pa.binary()) for tap, values in vectors.items()}
    )


def _lists(vectors: Vectors) -> pa.Table:
    columns = {
        tap: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        for tap, values in vectors.items()
    }
    return pa.table(columns)


def _write(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # No dictionaries: values that never come again only grow by them, lists of floats most.
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP, use_dictionary=False)
    return sink.getvalue().to_pybytes()


def _read_plain(data: bytes) -> Vectors:
    """As `FeatureStore.pooled` does."""
    table = pq.read_table(io.BytesIO(data))
    rows = len(table)
    return {
        tap: np.frombuffer(b"".join(table[tap].to_pylist()), "<f4").reshape(rows, -1)
        for tap in table.column_names
    }


def _read_lists(data: bytes) -> Vectors:
    table = pq.read_table(io.BytesIO(data))
    rows = len(table)
    return {
        tap: table[tap].combine_chunks().flatten().to_numpy().reshape(rows, -1) for tap in table.column_names
    }
