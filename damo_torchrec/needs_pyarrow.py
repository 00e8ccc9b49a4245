"""pyarrow, or the sentence that says how to get it: for modules that do nothing without."""

try:
    import pyarrow as pyarrow
    import pyarrow.parquet  # noqa: F401  # by its name in pyarrow
except ImportError as error:
    raise ImportError(
        f"damo_torchrec needs pip install 'damo-torchrec[arrow]' for Arrow and Parquet: {error}"
    ) from error
