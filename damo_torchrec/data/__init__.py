"""Arrow's record batches and Parquet files as batches of KeyedJaggedTensors: `Batches` of `ParquetRows` or `ArrowRows`.

Needs ``pip install 'damo-torchrec[arrow]'``, and strings ``'damo-torchrec[strings]'`` besides.
"""

from typing import TYPE_CHECKING

from damo_torchrec import lazy

if TYPE_CHECKING:
    from damo_torchrec.data.arrow_rows import ArrowRows as ArrowRows
    from damo_torchrec.data.batches import Batches as Batches
    from damo_torchrec.data.batches import Shuffle as Shuffle
    from damo_torchrec.data.columns import Columns as Columns
    from damo_torchrec.data.columns import Ids as Ids
    from damo_torchrec.data.columns import Number as Number
    from damo_torchrec.data.columns import Strings as Strings
    from damo_torchrec.data.parquet_rows import ParquetRows as ParquetRows

try:
    import pyarrow as _pyarrow
except ImportError as error:
    raise ImportError(f"damo_torchrec.data needs pip install 'damo-torchrec[arrow]': {error}") from error

del _pyarrow

__all__ = ["ArrowRows", "Batches", "Columns", "Ids", "Number", "ParquetRows", "Shuffle", "Strings"]
_get, __dir__ = lazy.attributes(
    __name__,
    {
        "ArrowRows": "arrow_rows",
        "Batches": "batches",
        "Columns": "columns",
        "Ids": "columns",
        "Number": "columns",
        "ParquetRows": "parquet_rows",
        "Shuffle": "batches",
        "Strings": "columns",
    },
)

if not TYPE_CHECKING:  # else a misspelt name would be of any type
    __getattr__ = _get
