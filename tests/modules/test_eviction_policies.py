"""TorchRec's eviction policies of a table: those that mean the same here, and what the others are told."""

import dataclasses
import math

import pytest
from torchrec.modules import embedding_configs as torchrec_configs

import damo_torchrec as damo
from damo_torchrec.life import AskedLife
from damo_torchrec.modules.eviction_policies import life_of
from support import config

NOTHING = AskedLife()
STAY = AskedLife(expire=[], max_rows=math.inf)


def policy(name, **fields):
    """Not every TorchRec that is supported has all of them."""
    kind = getattr(torchrec_configs, f"{name}EvictionPolicy", None)
    if kind is None:
        pytest.skip(f"this TorchRec has no {name}EvictionPolicy")
    if unknown := fields.keys() - {field.name for field in dataclasses.fields(kind)}:
        pytest.skip(f"this TorchRec's {name}EvictionPolicy has no {', '.join(sorted(unknown))}")
    return kind(**fields)


def asked(name, fields, given=NOTHING, **more):
    return life_of(config("t", 4, virtual_table_eviction_policy=policy(name, **fields), **more), given)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("No", {}, STAY),
        ("TimestampBased", {}, AskedLife(expire=[damo.Idle(days=1)])),
        ("TimestampBased", {"eviction_ttl_mins": 90}, AskedLife(expire=[damo.Idle(minutes=90)])),
        ("TimestampBased", {"eviction_ttl_mins": 0}, STAY),
        (
            "CountTimestampMixed",
            {"decay_rate": 1, "eviction_threshold": 16},
            AskedLife(expire=[damo.Idle(days=1, below_count=16)]),
        ),
        ("CountTimestampMixed", {"eviction_threshold": 0, "eviction_ttl_mins": 0}, STAY),
        ("FeatureScoreBased", {"eviction_ttl_mins": 30}, AskedLife(expire=[damo.Idle(minutes=30)])),
        ("FeatureScoreBased", {"enable_eviction": False, "training_id_eviction_trigger_count": 9}, STAY),
        ("FeatureScoreBased", {}, STAY),
        ("CountBased", {"eviction_threshold": 0}, STAY),
        ("FeatureL2NormBased", {}, STAY),
    ],
)
def test_what_means_the_same_is_taken(name, fields, expected):
    assert asked(name, fields) == expected


def test_a_score_is_a_capacity_with_a_credit_that_is_given():
    fields = {"training_id_eviction_trigger_count": 100, "training_id_keep_count": 80}
    assert asked("FeatureScoreBased", fields, AskedLife(credit=5)) == AskedLife(max_rows=100, keep_rows=80, credit=5)
    with pytest.raises(
        ValueError, match=r"'t': its FeatureScoreBasedEvictionPolicy ranks rows.* TableOptions\(credit="
    ):
        asked("FeatureScoreBased", fields)
    with pytest.raises(ValueError, match="has training_id_keep_count=101, expected one from 1 to 100"):
        asked("FeatureScoreBased", {**fields, "training_id_keep_count": 101}, AskedLife(credit=5))


def test_features_of_a_table_have_one_score():
    fields = {"training_id_eviction_trigger_count": 100, "training_id_keep_count": 80}
    scored = {**fields, "feature_score_mapping": {"t": 2.0}}
    assert asked("FeatureScoreBased", scored, AskedLife(credit=0)).max_rows == 100
    other = {**fields, "feature_score_mapping": {"a": 2.0}, "feature_score_default_value": 1.0}
    with pytest.raises(ValueError, match=r"scores the table's features differently, {'a': 2.0, 'b': 1.0}"):
        asked("FeatureScoreBased", other, AskedLife(credit=5), features=["a", "b"])


def test_one_less_than_a_power_of_two_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="eviction_threshold=15 is taken for 16"):
        assert asked("CountTimestampMixed", {"decay_rate": 1.0}).expire == (damo.Idle(days=1, below_count=16),)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("CountTimestampMixed", {}, r"decay_rate=0\.99, .*Idle\(minutes=1440, below_count="),
        ("CountTimestampMixed", {"decay_rate": 1, "eviction_threshold": 10}, "the nearest are 8 and 16"),
        ("CountTimestampMixed", {"decay_rate": 1, "eviction_threshold": 0}, "both idle and rare.*max_rows"),
        ("CountTimestampMixed", {"decay_rate": 1, "eviction_ttl_mins": 0}, "both idle and rare"),
        (
            "CountTimestampMixed",
            {"decay_rate": 1, "eviction_threshold": 16, "inference_eviction_threshold": 4},
            "inference_eviction_threshold=4 .*export takes min_count",
        ),
        ("TimestampBased", {"inference_eviction_ttl_mins": 5}, "inference_eviction_ttl_mins=5 .*export takes expire"),
        ("TimestampBased", {"training_id_eviction_trigger_count": 7}, r"TableOptions\(min_rows=7\)"),
        ("TimestampBased", {"max_inference_id_num_per_rank": 7}, r"give top_n to damo\.onnx\.export"),
        ("FeatureScoreBased", {"max_inference_id_num_per_rank": 7}, r"give top_n to damo\.onnx\.export"),
        ("FeatureScoreBased", {"inference_eviction_feature_score_threshold": 0.5}, "=0.5, .*export takes min_count"),
        ("TimestampBased", {"eviction_ttl_mins": -1}, "eviction_ttl_mins=-1, expected a number that is not negative"),
        ("CountBased", {}, r"count alone.*credit.*damo\.Admit"),
        ("FeatureL2NormBased", {"eviction_threshold": 0.5}, r"store\.expire\('t', below_norm=0\.5\)"),
    ],
)
def test_what_means_something_else_is_refused_with_what_comes_next_to_it(name, fields, message):
    with pytest.raises(ValueError, match=rf"^table 't': its {name}EvictionPolicy .*{message}"):
        asked(name, fields)


def test_a_policy_of_ones_own_is_what_it_is_made_of_or_refused():
    base = type(policy("TimestampBased"))
    own = type("Own", (base,), {})
    assert life_of(config("t", virtual_table_eviction_policy=own()), NOTHING).expire == (damo.Idle(days=1),)
    with pytest.raises(ValueError, match="VirtualTableEvictionPolicy is not known here; there are NoEvictionPolicy, "):
        asked("VirtualTable", {})


def test_options_go_with_a_policy_and_must_not_say_otherwise():
    fields = {"eviction_ttl_mins": 60}
    admit = damo.Admit(sightings=2)
    assert asked("TimestampBased", fields, AskedLife(admit=admit)) == AskedLife(
        admit=admit, expire=[damo.Idle(hours=1)]
    )
    same = AskedLife(expire=[damo.Idle(hours=1)])
    assert asked("TimestampBased", fields, same) == same
    with pytest.raises(ValueError, match=r"asks for expire \(Idle\(hours=1\),\), got \(\) in TableOptions"):
        asked("TimestampBased", fields, AskedLife(expire=[]))
    assert asked("No", {}, AskedLife(max_rows=5)) == AskedLife(expire=[], max_rows=5)
