"""Rows of other packages into stores."""

from damo_torchrec.convert.damo_dump import DamoDump, DumpedGroup
from damo_torchrec.convert.damo_store import GroupDicts, convert_damo_dump

__all__ = ["DamoDump", "DumpedGroup", "GroupDicts", "convert_damo_dump"]
