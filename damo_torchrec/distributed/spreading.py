"""What has to hold for tables to be spread over ranks: checked on all of them at once, so that all raise or none."""

from torch import distributed

from damo_torchrec.distributed.agreement import RanksAgreement
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
    return None


def _description(collection: Collection) -> object:
    """What has to be the same on all ranks."""
    steps = {table.name: table.iter for table in collection.tables()}
    definitions = [str(definition) for definition in collection.table_definitions()]
    return collection.store.seed, str(collection.lookup_plan), definitions, steps
