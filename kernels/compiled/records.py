"""What the compiled step is told: one record for the network, one for each layer, one for the step, all addresses.

Addresses and counts are int64. The arrays behind them belong to whoever filled the record (`myna.engine.compiled`).
"""

from __future__ import annotations

import numpy as np

MOST_ROWS = 64
"""Rows of a step."""

MOST_KEYS = 1024
"""Keys of a chunk."""


def _record(*names: str, floats: tuple[str, ...] = ()) -> np.dtype[np.void]:
    return np.dtype([*((name, np.int64) for name in names), *((name, np.float32) for name in floats)], align=True)


NETWORK = _record(
    "threads", "hidden", "inner", "heads", "kv_heads", "head_dim", "vocabulary",
    "page_size", "slots",
    "embedding", "head",
    "residual", "qkv", "query", "attended", "activated",  # shared by all threads
    "operand", "scratch", "columns", "scores", "private_bytes",  # thread 0's own; those of the next are so many bytes on
    "tiles",
    floats=("epsilon",),
)  # fmt: skip
"""Sizes (`inner`: of the MLP; `slots`: of the KV pool), weights, and the buffers of a step.

`operand`: normalised rows; `scratch`: two results of [MOST_ROWS, 16]; `columns`: queries [head_dim, 16]; `scores`:
[MOST_KEYS, 16], float32 each. `tiles`: the configuration of the tile unit.
"""

LAYER = _record(
    "qkv", "output", "gate_up", "down",
    "qkv_bias", "query_norm", "key_norm",  # 0 where there is none
    "keys", "values",
    floats=("attention_epsilon", "mlp_epsilon", "head_epsilon", "scale"),
)  # fmt: skip
"""A layer's weights and its KV pool. `scale`: of the scores, in powers of two."""

STEP = _record(
    "rows", "token_ids", "positions", "write_slots", "cosines", "sines",
    "chunks", "chunk_count", "partials", "bounds", "parts", "peaks", "sums",
    "logit_rows", "logit_count", "logits", "best", "best_ids",
)  # fmt: skip
"""`cosines`, `sines`: tables by position. `best`, `best_ids`: float32 [threads, rows, 16], the largest logit of each
thread's share of the vocabulary by its number modulo 16, and that number.

`chunks`: CHUNK records. `partials`: PARTIAL records, row by row, those of row r from `bounds[r]`."""

CHUNK = _record("pages", "keys", "rows", "row_count", "column")
"""Some keys that some rows attend to. `pages`: address of the first page's number; `rows`: of the rows' numbers;
`column`: where their results begin, see PARTIAL."""

PARTIAL = _record("column", "stride")
"""Where a row's result over one chunk is: `column + kv_head * stride + i` for query head i of the KV head. A column is
`head_dim` floats of `parts`, and one float each of `peaks` (the largest score) and `sums` (of the weights)."""


def offsets(record: np.dtype[np.void]) -> tuple[int, ...]:
    """Of a record's fields, in bytes."""
    fields = record.fields
    assert fields is not None, "a record has fields"
    return tuple(place[1] for place in fields.values())
