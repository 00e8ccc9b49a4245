"""How exported rows may be stored: csrc/serving/row_dtypes has the dtypes, one file each."""

from collections.abc import Mapping
from typing import Literal

from damo_torchrec import _core

DtypeName = Literal["float32", "float16", "int8"]  # those of the engine, for type checkers

ROW_DTYPES: Mapping[str, _core.RowDtype] = {dtype.name: dtype for dtype in _core.ROW_DTYPES}
