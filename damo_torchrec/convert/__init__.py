"""Rows of other packages into stores. What reads Parquet, or dynamicemb's files, needs no torch."""

from typing import TYPE_CHECKING

from damo_torchrec import lazy

if TYPE_CHECKING:
    from damo_torchrec.convert.damo_dump import DamoDump as DamoDump
    from damo_torchrec.convert.damo_dump import DumpedGroup as DumpedGroup
    from damo_torchrec.convert.damo_store import GroupDicts as GroupDicts
    from damo_torchrec.convert.damo_store import convert_damo_dump as convert_damo_dump

__all__ = ["DamoDump", "DumpedGroup", "GroupDicts", "convert_damo_dump"]
_get, __dir__ = lazy.attributes(
    __name__,
    {
        "DamoDump": "damo_dump",
        "DumpedGroup": "damo_dump",
        "GroupDicts": "damo_store",
        "convert_damo_dump": "damo_store",
    },
)

if not TYPE_CHECKING:  # else a misspelt name would be of any type
    __getattr__ = _get
