"""Names of what is in an exported graph, and what its functions are made for."""

from dataclasses import dataclass

import onnx

from damo_torchrec import _core

VERSION = 1
OPSET = 18
# The first with functions; every runtime that has opset 18 reads it.
IR_VERSION = 8

INT64 = onnx.TensorProto.INT64
UINT64 = onnx.TensorProto.UINT64
FLOAT = onnx.TensorProto.FLOAT
DOUBLE = onnx.TensorProto.DOUBLE

# A row group's arrays, by table, by part, by bucket and by row: those of csrc/serving/serving_rows.h.
HASH_ARRAYS = ["first_bucket", "bucket_mask", "middle_row", "row_scale", "buckets", "keys"]
# What initial values are drawn from, by table: halves of its stream's key, and the least value and the range.
DRAW_ARRAYS = ["stream_low", "stream_high", "draw_low", "draw_range"]
# What ids without a row read besides, by table: ``(tables, dim)``, means of rows or zeros.
MEAN_ARRAY = "mean_rows"

# What a node that refuses a request is called, by its output: ONNX Runtime's errors tell the name.
REFUSALS = {
    "ids": "lengths are negative, beyond max_length, or not in sum the number of values",
    "checked_weights": "there is not one weight for each value",
}


@dataclass(frozen=True)
class RowFormat:
    """How a group's rows are stored.

    Args:
        dim: weights in a row.
        dtype: of their weights.
        shards: arrays that the rows are spread over.
        shard_rows: rows in each of them but the last; of no meaning for one.
    """

    dim: int
    dtype: _core.RowDtype
    shards: int = 1
    shard_rows: int = 0

    @property
    def arrays(self) -> list[str]:
        """The names of its arrays in signatures."""
        scales = ["scales"] if self.dtype.scaled else []
        return [f"rows_{shard}" for shard in range(self.shards)] + scales

    @property
    def suffix(self) -> str:
        """Tells functions for it from those for other formats."""
        return self.dtype.suffix + (f"Shards{self.shards}x{self.shard_rows}" if self.shards > 1 else "")


@dataclass(frozen=True)
class Lookup:
    """A function that looks up rows of one group.

    Args:
        rows: how the group's rows are stored.
        pooled: whether it sums bags; else it gives the row of each id.
        weighted: whether ids have weights. Of pooled lookups.
        means: whether some outputs are means. Of pooled lookups.
        initial: whether ids without a row of some tables read what it would begin with.
        mean_rows: whether those of some tables read the mean of its rows. Else they read zeros.
    """

    rows: RowFormat
    pooled: bool
    weighted: bool = False
    means: bool = False
    initial: bool = False
    mean_rows: bool = False

    @property
    def fills(self) -> bool:
        """Whether ids without a row of some tables read other than zeros."""
        return self.initial or self.mean_rows

    @property
    def name(self) -> str:
        """The function's, in its domain."""
        kind = f"{'Weighted' if self.weighted else ''}EmbeddingBag{'Mean' if self.means else ''}s"
        initial = f"Initial{self.rows.dim}" if self.initial else ""
        mean = "MeanRows" if self.mean_rows else ""
        return (kind if self.pooled else "EmbeddingRows") + self.rows.suffix + initial + mean

    @property
    def inputs(self) -> list[str]:
        """Its inputs: first those of each request, then arrays."""
        request = ["values", "lengths", *(["weights"] if self.weighted else [])]
        arrays = ["tables", *(["means"] if self.means else []), *(DRAW_ARRAYS if self.initial else [])]
        arrays += [MEAN_ARRAY] if self.mean_rows else []
        return [*request, *arrays, *HASH_ARRAYS, *self.rows.arrays]
