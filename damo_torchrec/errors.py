"""What the engine raises. A wrong call raises Python's own ``ValueError``, ``TypeError`` or ``KeyError`` instead."""


class DamoError(Exception):
    """Base of the engine's errors; raised as such when the operating system refuses a read or a write."""


class CorruptionError(DamoError):
    """Stored bytes are not what was written: a checksum, a size or a format version is wrong."""


class StoreLockedError(DamoError):
    """Another process, or another `EmbeddingStore` of this one, has the store open."""


class StoreClosedError(DamoError):
    """The store was closed, or belongs to the parent process of a fork."""


class UncleanStoreError(DamoError):
    """The store was not closed, and ``restore=None`` asked not to go back to a checkpoint."""


class SchemaMismatchError(DamoError):
    """A table or a store exists with another schema than the one asked for."""


class OutOfSpaceError(DamoError):
    """The disk, or a quota, is full. Rows in memory are intact."""


class NonFiniteGradientError(DamoError, ValueError):
    """A gradient is NaN or infinite. No table was updated."""


class ClockWarning(UserWarning):
    """`EmbeddingStore.clock` has gone back, or leapt ahead by more than counts for some rule that goes by time."""


class ContinuedRowsWarning(UserWarning):
    """Rows of an earlier run are trained on, without what `load_model` or `EmbeddingStore.restore` brings back."""
