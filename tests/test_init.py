"""Initial rows: a function of (seed, table name, id), of the distribution asked for, and the same in every version."""

import hashlib
import math
import statistics
from functools import partial

import pytest
import torch
import torchrec
from scipy import stats
from torch.nn import init as torch_init

import damo_torchrec as damo
from support import A_HANDFUL_OF_ROWS, config, kjt, small_store

IDS = [0, 1, 2, -1, 12345, 2**32 + 1, -(2**63), 2**63 - 1]
INITIALIZERS = {
    "Uniform": damo.init.Uniform(-0.5, 0.25),
    "Normal": damo.init.Normal(0.5, 2.0),
    "TruncatedNormal": damo.init.TruncatedNormal(0.0, 1.0, -2.0, 0.5),
    "TruncatedNormal to the right": damo.init.TruncatedNormal(0.0, 1.0, -0.5, 2.0),
    "XavierUniform": damo.init.XavierUniform(2.0),
    "Constant": damo.init.Constant(0.125),
}


def initial_rows(store, ids, initializer=None, table="t", dim=8, **more):
    """The rows that ids without one read in train mode."""
    options = {table: damo.TableOptions(initializer=initializer)}
    ebc = damo.EmbeddingBagCollection([config(table, dim, **more)], store=store, table_options=options)
    with torch.no_grad():
        return ebc(kjt({table: [[i] for i in ids]})).values()


# ---------------------------------------------------------------- what they depend on


@pytest.fixture(params=INITIALIZERS.values(), ids=INITIALIZERS)
def initializer(request):
    return request.param


@pytest.fixture
def reference(initializer):
    with small_store(seed=3, num_threads=1) as store:
        return initial_rows(store, IDS, initializer)


@pytest.mark.parametrize("options", [{}, {"num_threads": 3}, {"cache_bytes": A_HANDFUL_OF_ROWS}], ids=str)
@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
def test_rows_do_not_depend_on_the_store(tmp_path, initializer, reference, options, on_disk):
    with small_store(tmp_path / "another" if on_disk else None, seed=3, **options) as store:
        assert torch.equal(initial_rows(store, IDS, initializer), reference)
        many = initial_rows(store, [*range(-5000, 5000), *IDS], initializer)
        assert torch.equal(many[10_000:], reference)
        assert torch.equal(initial_rows(store, IDS[::-1], initializer), reference.flip(0))
        for row, i in zip(reference, IDS, strict=True):
            assert torch.equal(initial_rows(store, [i], initializer)[0], row)


def test_rows_do_not_depend_on_other_tables_or_on_torchs_generator(memory_store):
    rows = []
    for name in ("t1", "t2"):
        torch.manual_seed(len(rows))
        with small_store() as store:
            initial_rows(store, IDS, table=name)
            rows.append(initial_rows(store, IDS))
    assert torch.equal(*rows)


@pytest.mark.parametrize("name", ["Uniform", "Normal", "TruncatedNormal", "XavierUniform"])
def test_another_seed_or_table_or_id_gives_another_row(name):
    rows = []
    for seed, table in ((0, "t"), (1, "t"), (-1, "t"), (2**64, "t"), (0, "u"), (0, "t ")):
        with small_store(seed=seed) as store:
            rows.append(initial_rows(store, IDS, INITIALIZERS[name], table=table))
    weights = torch.cat(rows).flatten()
    assert len(weights.unique()) == len(weights)


def test_what_train_mode_read_is_what_the_first_update_starts_from(memory_store):
    options = {"t": damo.TableOptions(unseen_in_eval="initial")}
    ebc = damo.EmbeddingBagCollection(
        [config("t")], torch.optim.SGD, {"lr": 1.0}, store=memory_store, table_options=options
    )
    features = kjt({"t": [[i] for i in IDS]})
    before = ebc(features).values()
    table = memory_store.table("t")
    assert torch.equal(table.get(IDS), before)
    before.sum().backward()
    assert torch.equal(table.get(IDS), before - 1)
    table.delete(IDS)
    assert torch.equal(table.get(IDS), before)


# ---------------------------------------------------------------- the numbers themselves


def philox(counter_low, counter_high, key):
    """Philox4x32-10 as in Salmon et al. 2011, in Python's integers."""
    mask = 2**32 - 1
    c = [counter_low & mask, counter_low >> 32, counter_high & mask, counter_high >> 32]
    k = [key & mask, key >> 32]
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [q >> 32 ^ c[1] ^ k[0], q & mask, p >> 32 ^ c[3] ^ k[1], p & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c


def bits(seed, table, i, dim):
    """The random words of a row."""
    name = hashlib.blake2b(table.encode(), digest_size=8, key=seed.to_bytes(16, "little", signed=True))
    key = int.from_bytes(name.digest(), "little")
    return [word for block in range(math.ceil(dim / 4)) for word in philox(block, i % 2**64, key)][:dim]


def test_the_oracle_gives_the_published_numbers():
    # Random123's known answers for philox4x32-10.
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(2**64 - 1, 2**64 - 1, 2**64 - 1) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("seed", [0, 7, -1, 2**100])
@pytest.mark.parametrize("dim", [1, 3, 4, 17])
def test_rows_are_philoxs_words(seed, dim):
    with small_store(seed=seed) as store:
        uniform = initial_rows(store, IDS, damo.init.Uniform(0.0, 1.0), "täble", dim)
        normal = initial_rows(store, IDS, damo.init.Normal(), "n", dim)
    words = torch.tensor([bits(seed, "täble", i, dim) for i in IDS])
    assert torch.equal(uniform.double(), (words >> 8).double() * 2**-24)
    quantiles = (torch.tensor([bits(seed, "n", i, dim) for i in IDS], dtype=torch.float64) + 0.5) * 2**-32
    torch.testing.assert_close(normal, torch.from_numpy(stats.norm.ppf(quantiles)).float(), rtol=2e-7, atol=0)


# Drawn with seed 0 for table "t": no later version may change them.
GOLDEN = {
    "Uniform": [
        ["-0x1.fb550a0000000p-2", "-0x1.e4202c0000000p-2", "0x1.d901000000000p-6"],
        ["-0x1.4537a80000000p-4", "-0x1.7c5a480000000p-3", "-0x1.8db1d80000000p-3"],
        ["0x1.972f400000000p-4", "0x1.ecf5580000000p-3", "-0x1.948e100000000p-5"],
    ],
    "Normal": [
        ["-0x1.20f8980000000p+2", "-0x1.8b9f8c0000000p+1", "0x1.941f0c0000000p+0"],
        ["0x1.9cac900000000p-1", "0x1.75fdc40000000p-4", "0x1.110c4e0000000p-5"],
        ["0x1.16bcac0000000p+1", "0x1.3f4f1a0000000p+2", "0x1.02cd600000000p+0"],
    ],
    "TruncatedNormal": [
        ["-0x1.ee08bc0000000p+0", "-0x1.aca8e80000000p+0", "-0x1.d4431a0000000p-7"],
        ["-0x1.095afa0000000p-2", "-0x1.0821c40000000p-1", "-0x1.1343860000000p-1"],
        ["0x1.269fc60000000p-3", "0x1.e806e60000000p-2", "-0x1.85c9e60000000p-3"],
    ],
    "TruncatedNormal to the right": [
        ["0x1.ee08bc0000000p+0", "0x1.aca8e80000000p+0", "0x1.d4431a0000000p-7"],
        ["0x1.095afa0000000p-2", "0x1.0821c40000000p-1", "0x1.1343860000000p-1"],
        ["-0x1.269fc60000000p-3", "-0x1.e806e60000000p-2", "0x1.85c9e60000000p-3"],
    ],
    "XavierUniform": [
        ["-0x1.e8498c0000000p-2", "-0x1.ca6a4a0000000p-2", "0x1.95a3800000000p-3"],
        ["0x1.e0dd200000000p-5", "-0x1.4024080000000p-4", "-0x1.6cc9780000000p-4"],
        ["0x1.27ccdc0000000p-2", "0x1.e20a580000000p-2", "0x1.8eaf100000000p-4"],
    ],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_rows_stay_what_they_were_in_the_first_version(memory_store, name):
    rows = initial_rows(memory_store, [0, 1, -(2**63)], INITIALIZERS[name], dim=3)
    assert [[value.hex() for value in row] for row in rows.tolist()] == GOLDEN[name]


# ---------------------------------------------------------------- distributions

XAVIER_BOUND = 2 * math.sqrt(6 / (100 + 8))
DISTRIBUTIONS = {
    "Uniform": (INITIALIZERS["Uniform"], stats.uniform(-0.5, 0.75)),
    "Normal": (INITIALIZERS["Normal"], stats.norm(0.5, 2.0)),
    "TruncatedNormal": (INITIALIZERS["TruncatedNormal"], stats.truncnorm(-2.0, 0.5)),
    "TruncatedNormal to the right": (INITIALIZERS["TruncatedNormal to the right"], stats.truncnorm(-0.5, 2.0)),
    "the left tail of a normal": (damo.init.TruncatedNormal(0.0, 1.0, -10.0, -8.0), stats.truncnorm(-10.0, -8.0)),
    "the right tail of a normal": (damo.init.TruncatedNormal(0.0, 1.0, 8.0, 10.0), stats.truncnorm(8.0, 10.0)),
    "XavierUniform": (INITIALIZERS["XavierUniform"], stats.uniform(-XAVIER_BOUND, 2 * XAVIER_BOUND)),
}


@pytest.mark.parametrize(("initializer", "distribution"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_weights_have_their_distribution(memory_store, initializer, distribution):
    rows = initial_rows(memory_store, range(10_000), initializer).double()
    for column in rows.T:
        assert stats.kstest(column, distribution.cdf).pvalue > 0.001
    assert stats.kstest(rows.flatten(), distribution.cdf).pvalue > 0.01
    correlations = torch.corrcoef(torch.cat([rows[:-1], rows[1:]], dim=1).T) - torch.eye(16)
    assert correlations.abs().max() < 0.045  # 4.5 standard deviations


def test_a_truncated_normal_stays_in_its_interval(memory_store):
    weights = initial_rows(memory_store, range(10_000), damo.init.TruncatedNormal(0, 1, -0.01, 6.0))
    assert weights.min() >= -0.01
    assert weights.max() <= 6.0


def test_a_store_with_truncated_normals_opens_where_the_c_library_rounds_otherwise(tmp_path, monkeypatch):
    initializer = damo.init.TruncatedNormal()
    with small_store(tmp_path / "store") as store:
        rows = initial_rows(store, IDS, initializer)
        store.table("t").set(IDS, rows)
    for function in (math.erf, math.erfc):
        nudged = partial(lambda exact, x: math.nextafter(exact(x), 2), function)
        monkeypatch.setattr(math, function.__name__, nudged)
        monkeypatch.setattr(statistics, function.__name__, nudged, raising=False)
    with small_store(tmp_path / "store") as store:
        assert torch.equal(initial_rows(store, IDS, initializer), rows)


@pytest.mark.parametrize("num_embeddings", [4, 10_000])
def test_the_default_is_uniform_between_plus_and_minus_one_over_the_root_of_num_embeddings(
    memory_store, num_embeddings
):
    weights = initial_rows(memory_store, range(10_000), num_embeddings=num_embeddings)
    bound = 1 / math.sqrt(num_embeddings)
    assert stats.kstest(weights.flatten().double(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01
    assert -bound <= weights.min() < -0.999 * bound
    assert 0.999 * bound < weights.max() < bound


def test_weight_init_min_and_max_are_honoured(memory_store):
    weights = initial_rows(memory_store, range(10_000), weight_init_min=2.0, weight_init_max=3.0)
    assert 2.0 <= weights.min() < 2.001
    assert 2.999 < weights.max() < 3.0


# ---------------------------------------------------------------- torch.nn.init

RECOGNISED = [
    (torch_init.uniform_, damo.init.Uniform(0.0, 1.0)),
    (partial(torch_init.uniform_, a=-0.25, b=0.5), damo.init.Uniform(-0.25, 0.5)),
    (partial(torch_init.uniform_, b=0.5), damo.init.Uniform(0.0, 0.5)),
    (torch_init.normal_, damo.init.Normal(0.0, 1.0)),
    (partial(torch_init.normal_, mean=1.0, std=0.5), damo.init.Normal(1.0, 0.5)),
    (torch_init.trunc_normal_, damo.init.TruncatedNormal(0.0, 1.0, -2.0, 2.0)),
    (partial(torch_init.trunc_normal_, std=0.5, a=-1.0, b=1.0), damo.init.TruncatedNormal(0.0, 0.5, -1.0, 1.0)),
    (partial(torch_init.constant_, val=0.5), damo.init.Constant(0.5)),
    (torch_init.zeros_, damo.init.Constant(0.0)),
    (torch_init.ones_, damo.init.Constant(1.0)),
    (torch_init.xavier_uniform_, damo.init.XavierUniform(1.0)),
    (partial(torch_init.xavier_uniform_, gain=0.5), damo.init.XavierUniform(0.5)),
    (partial(torch_init.normal_, std=0.5, generator=torch.Generator()), damo.init.Normal(0.0, 0.5)),
    (partial(partial(torch_init.normal_, mean=1.0), std=0.5), damo.init.Normal(1.0, 0.5)),
]


@pytest.mark.parametrize(("init_fn", "expected"), RECOGNISED, ids=[str(expected) for _, expected in RECOGNISED])
def test_torchs_init_functions_are_recognised_and_draw_from_the_same_distribution(init_fn, expected):
    with small_store() as store, small_store() as other:
        rows = initial_rows(store, range(1000), init_fn=init_fn, num_embeddings=1000)
        assert torch.equal(rows, initial_rows(other, range(1000), expected, num_embeddings=1000))
    torch.manual_seed(0)
    theirs = torchrec.EmbeddingBagCollection([config("t", num_embeddings=1000, init_fn=init_fn)])
    weight = theirs.embedding_bags["t"].weight.detach()
    assert stats.ks_2samp(rows.flatten(), weight.flatten()).pvalue > 0.001


def test_an_initializer_in_table_options_takes_the_place_of_init_fn(memory_store):
    rows = initial_rows(memory_store, [1], damo.init.Constant(3.0), init_fn=torch_init.zeros_)
    assert torch.equal(rows, torch.full((1, 8), 3.0))


def double_normal(weight):
    return torch_init.normal_(weight).mul_(2)


@pytest.mark.parametrize(
    "init_fn", [double_normal, lambda weight: weight, torch_init.kaiming_uniform_, partial(torch_init.orthogonal_)]
)
def test_unknown_init_functions_are_refused_with_what_to_do_instead(memory_store, init_fn):
    with pytest.raises(ValueError, match=r"table 't': init_fn .* normal_.*TableOptions\(initializer=damo\.init"):
        initial_rows(memory_store, [1], init_fn=init_fn)
    assert memory_store.tables() == {}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: damo.init.Uniform(1.0, 0.0), "low <= high, got 1.0 and 0.0"),
        (lambda: damo.init.Uniform(0.0, float("inf")), "finite.*, got 0.0 and inf"),
        (lambda: damo.init.Uniform(-3e38, 3e38), "finite"),  # in float32, as the rows are
        (lambda: damo.init.Constant(1e39), "finite"),
        (lambda: damo.init.Constant(float("nan")), "finite.*, got nan"),
        (lambda: damo.init.Normal(0.0, -1.0), "std must not be negative, got .*-1.0"),
        (lambda: damo.init.TruncatedNormal(0.0, 0.0), "std > 0"),
        (lambda: damo.init.TruncatedNormal(0.0, 1.0, 2.0, 2.0), "low < high"),
        (lambda: damo.init.TruncatedNormal(0.0, 1.0, 50.0, 60.0), "holds nothing"),
    ],
)
def test_numbers_that_make_no_distribution_are_refused(memory_store, make, match):
    with pytest.raises(ValueError, match=match):
        initial_rows(memory_store, [1], make())
    assert memory_store.tables() == {}


def test_what_is_no_initializer_is_refused(memory_store):
    with pytest.raises(TypeError, match="initializer"):
        initial_rows(memory_store, [1], torch_init.normal_)
