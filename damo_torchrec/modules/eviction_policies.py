"""What TorchRec's eviction policies of a table ask of how long rows live here, where they mean the same."""

import math
import warnings
from collections.abc import Callable
from typing import Any

from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from damo_torchrec.life import AskedLife, Idle

# Of policies by which no row goes. What TableOptions ask counts for more.
_STAY = AskedLife(expire=[], max_rows=math.inf)


def life_of(config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    """What a config's ``virtual_table_eviction_policy`` and the table's options ask together.

    Args:
        config: the table's.
        given: what its `TableOptions` ask.

    Raises:
        ValueError: the policy has no counterpart here, which names what comes next to it; or both ask for the same
            option, and for different values.
    """
    policy = config.virtual_table_eviction_policy
    if policy is None:
        return given
    try:
        asked = _asked_by(policy, config, given)
        if asked is not _STAY and (difference := asked.difference(given)):
            raise ValueError(f"asks for {difference} in TableOptions: give one of them")
    except ValueError as error:
        raise ValueError(f"table {config.name!r}: its {type(policy).__name__} {error}") from None
    return given.joined_with(asked)


def _asked_by(policy: Any, config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    """Raises ValueError as `life_of`, in words that go on from the policy's name."""
    _check_served(policy)
    for kind in type(policy).__mro__:  # by names: not every TorchRec has all of them
        if kind.__name__ in _POLICIES:
            return _POLICIES[kind.__name__](policy, config, given)
    raise ValueError(f"is not known here; there are {', '.join(_POLICIES)}")


def _no_eviction(policy: Any, config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    return _STAY


def _timestamp(policy: Any, config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    return _idle(policy, None)


def _mixed(policy: Any, config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    minutes, threshold = _number(policy, "eviction_ttl_mins"), _number(policy, "eviction_threshold")
    if minutes == 0 and threshold == 0:
        return _idle(policy, None)
    if minutes == 0 or threshold == 0:
        raise ValueError(
            f"has eviction_ttl_mins={minutes} and eviction_threshold={threshold}: a row goes if it is both idle and "
            "rare. For one of the two alone give TableOptions(expire=[damo.Idle(minutes=...)]), or TableOptions("
            "max_rows=..., credit=...), which keeps the rows updated most frequently"
        )
    if policy.decay_rate != 1:
        raise ValueError(
            f"has decay_rate={policy.decay_rate}, and counts do not decay here: give decay_rate=1, or "
            f"TableOptions(expire=[damo.Idle(minutes={minutes}, below_count=...)]) in its place"
        )
    _check_inference(policy, "eviction_threshold", "min_count")
    return _idle(policy, _power_of_two(int(threshold)))


def _feature_score(policy: Any, config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    if not getattr(policy, "enable_eviction", True):
        return _STAY
    if _number(policy, "eviction_ttl_mins"):
        return _idle(policy, None)
    trigger, keep = (_number(policy, f"training_id_{which}_count") for which in ("eviction_trigger", "keep"))
    if trigger == 0:
        return _STAY
    if not 0 < keep <= trigger:
        raise ValueError(f"has training_id_keep_count={keep}, expected one from 1 to {trigger}, which triggers it")
    _check_inference(policy, "eviction_ttl_mins", "expire")
    _check_scores(policy, config)
    if given.credit is None:
        raise ValueError(
            "ranks rows by a score that decays, which is not kept here. What comes next to it: TableOptions(credit=c) "
            "beside it, where each doubling of a row's count makes up for c updates of the table; 0 keeps the rows "
            "updated last, a large one those updated most frequently"
        )
    return AskedLife(max_rows=int(trigger), keep_rows=int(keep))


def _check_scores(policy: Any, config: BaseEmbeddingConfig) -> None:
    """Raises ValueError if an update of one feature counts for more than one of another."""
    mapping = getattr(policy, "feature_score_mapping", None) or {}  # without, all features' updates count the same
    default = getattr(policy, "feature_score_default_value", None)
    scores = {feature: mapping.get(feature, default) for feature in config.feature_names or [config.name]}
    if len(set(scores.values())) > 1:
        raise ValueError(
            f"scores the table's features differently, {scores}, and all updates of a row count the same here: give "
            "features of different worth tables of their own"
        )


def _count(policy: Any, config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    if policy.eviction_threshold == 0:
        return _idle(policy, None)
    raise ValueError(
        "removes rows by their count alone, also new ones. What comes next to it: TableOptions(max_rows=..., "
        "credit=...) with a large credit, which keeps the rows updated most frequently; "
        "expire=[damo.Idle(days=..., below_count=...)]; or admit=damo.Admit(sightings=...), by which rare ids get none"
    )


def _norm(policy: Any, config: BaseEmbeddingConfig, given: AskedLife) -> AskedLife:
    if policy.eviction_threshold == 0:
        return _idle(policy, None)
    raise ValueError(
        f"removes rows by their norm, which takes reading all of them: call store.expire({config.name!r}, "
        f"below_norm={policy.eviction_threshold}) every so many steps in its place"
    )


def _idle(policy: Any, below_count: int | None) -> AskedLife:
    """Rows go after the policy's minutes without an update; never for 0."""
    if trigger := _number(policy, "training_id_eviction_trigger_count"):
        raise ValueError(
            f"has training_id_eviction_trigger_count={trigger}: rows go when their time has come here. Leave it out; "
            f"TableOptions(min_rows={trigger}) has that many stay"
        )
    _check_inference(policy, "eviction_ttl_mins", "expire")
    minutes = _number(policy, "eviction_ttl_mins")
    if minutes == 0:
        return _STAY
    return AskedLife(expire=[Idle(minutes=minutes, below_count=below_count)])


def _check_served(policy: Any) -> None:
    """Raises ValueError for what only servers go by, and is not what TorchRec itself puts there."""
    if _number(policy, "max_inference_id_num_per_rank") not in (0, _number(policy, "training_id_keep_count")):
        raise ValueError(
            f"has max_inference_id_num_per_rank={policy.max_inference_id_num_per_rank}, which no training goes by: "
            "leave it out, and give top_n to damo.onnx.export"
        )
    if threshold := getattr(policy, "inference_eviction_feature_score_threshold", None):
        raise ValueError(
            f"has inference_eviction_feature_score_threshold={threshold}, and no scores are kept here: leave it out; "
            "damo.onnx.export takes min_count, by which it leaves out rows updated rarely"
        )


def _check_inference(policy: Any, name: str, argument: str) -> None:
    """Raises ValueError if servers are to have other rows than training."""
    own, others = _number(policy, name), getattr(policy, f"inference_{name}", None)
    if others is not None and others != own:
        raise ValueError(
            f"has inference_{name}={others} beside {name}={own}, and servers have the rows of training here: leave it "
            f"out; damo.onnx.export takes {argument}, by which it leaves out more"
        )


def _number(policy: Any, name: str) -> float:
    """A field's value; 0 where the policy has no such field."""
    value: float = getattr(policy, name, 0)
    if value < 0:
        raise ValueError(f"has {name}={value!r}, expected a number that is not negative")
    return value


def _power_of_two(threshold: int) -> int:
    """The threshold as `Idle.below_count`; one less than a power of two becomes that, with a warning."""
    above = 1 << threshold.bit_length()
    if threshold == above - 1:
        warnings.warn(
            f"eviction_threshold={threshold} is taken for {above}: rows are told apart by powers of two of their count",
            stacklevel=2,
        )
        return above
    if threshold != above // 2:
        raise ValueError(
            f"has eviction_threshold={threshold}: rows are told apart by powers of two of their count, the nearest are "
            f"{above // 2} and {above}"
        )
    return threshold


_POLICIES: dict[str, Callable[[Any, BaseEmbeddingConfig, AskedLife], AskedLife]] = {
    "NoEvictionPolicy": _no_eviction,
    "TimestampBasedEvictionPolicy": _timestamp,
    "CountTimestampMixedEvictionPolicy": _mixed,
    "FeatureScoreBasedEvictionPolicy": _feature_score,
    "CountBasedEvictionPolicy": _count,
    "FeatureL2NormBasedEvictionPolicy": _norm,
}
