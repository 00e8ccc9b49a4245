"""What has to hold for tables to be spread over ranks: checked on all of them at once, so that all raise or none."""

from torch import distributed

from damo_torchrec.distributed.agreement import RanksAgreement
from damo_torchrec.lookup_plan import LookupKind
from damo_torchrec.modules.collection import Collection


def check_can_be_spread(collection: Collection, group: distributed.ProcessGroup, what: str) -> None:
    """Raises ValueError on all ranks if one has a table that cannot be spread, or they differ. Collective.

    Args:
        collection: over this rank's store.
        group: of the ranks.
        what: the collection is called, for messages.
    """
    told: list[tuple[str | None, object] | None] = [None] * group.size()
    distributed.all_gather_object(told, (_refusal(collection, group), _description(collection)), group=group)
    of_ranks = [said for said in told if said is not None]
    for rank, (refusal, _) in enumerate(of_ranks):
        if refusal is not None:
            raise ValueError(f"{what} cannot be spread over {group.size()} ranks: {refusal} (rank {rank})")
    for rank, (_, description) in enumerate(of_ranks):
        if description != of_ranks[0][1]:
            raise ValueError(
                f"{what} differs between ranks 0 and {rank}: all ranks need the same tables, options and seed of the "
                f"store, got {of_ranks[0][1]} and {description}"
            )


def _refusal(collection: Collection, group: distributed.ProcessGroup) -> str | None:
    """Why this rank's tables cannot be spread."""
    if group.size() == 1:
        return None
    agreement = collection.store.session.agreement
    if isinstance(agreement, RanksAgreement) and agreement.group is not group:
        return "its store has tables that are spread over another process group"
    for output in collection.lookup_plan.outputs:
        if output.unseen == "mean":
            return f"table {output.table!r} has unseen_in_eval='mean', and a rank knows the mean of its own rows alone"
    for table in collection.tables():
        life = table.opened.life
        if life is None:
            continue
        if life.admit.sightings > 1 and collection.lookup_plan.kind is LookupKind.SEQUENCES:
            return (
                f"table {table.name!r} of sequences has admit, and a rank sends an id once, however often its batch "
                "has it: its occurrences cannot be counted"
            )
        if life.max_rows is not None or life.min_rows:
            return f"table {table.name!r} has max_rows or min_rows, and a rank counts its own rows alone"
        if any(idle.seconds is not None for idle in life.expire):
            return f"table {table.name!r} has rows that expire by time, and clocks of ranks differ: give Idle steps"
    return None


def _description(collection: Collection) -> object:
    """What has to be the same on all ranks."""
    steps = {table.name: table.iter for table in collection.tables()}
    definitions = [str(definition) for definition in collection.table_definitions()]
    return collection.store.seed, str(collection.lookup_plan), definitions, steps
