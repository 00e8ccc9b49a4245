"""Whether rows of two schemas are alike, and the call that has those of one become as those of the other."""

from damo_torchrec.checkpoints.table_entry import TableSchema

# What of a schema shapes the rows.
SHAPING = ("dim", "optimizer", "row_dtype")


def differ(one: TableSchema, other: TableSchema) -> bool:
    """Whether their rows are not alike."""
    return any(getattr(one, what) != getattr(other, what) for what in SHAPING)


def differences(one: TableSchema, other: TableSchema) -> str:
    """In what their rows are not alike, in words."""
    pairs = {what: (getattr(one, what), getattr(other, what)) for what in SHAPING}
    return ", and ".join(f"{what} {has}, got {wanted}" for what, (has, wanted) in pairs.items() if has != wanted)


def call_that_converts(name: str, existing: TableSchema, wanted: TableSchema) -> str:
    """The call of a store that has the table be as wanted."""
    arguments = [repr(name)]
    if wanted.optimizer != existing.optimizer:
        arguments.append(f"optimizer={wanted.optimizer['name']!r}")
        if kwargs := {option: value for option, value in wanted.optimizer.items() if option != "name" and value}:
            arguments.append(f"optimizer_kwargs={kwargs}")
    if wanted.row_dtype != existing.row_dtype:
        arguments.append(f"row_dtype={wanted.row_dtype!r}")
    if wanted.dim != existing.dim:
        arguments.append(f"dim={wanted.dim}")
    return f"store.convert_table({', '.join(arguments)})"
