"""The data sets of the DLRM example: what is read, in which order, and what is refused."""

import csv
import gzip
import math

import numpy as np
import pytest
import torch
from scipy import stats

from dlrm_data import criteo
from dlrm_data.census import CATEGORIES, CROSSES, DATA_DIRECTORY, NUMBERS, Census, stable_hash
from dlrm_data.criteo import COLUMNS, Criteo, MalformedFileError, read_criteo
from dlrm_data.samples import Samples, rebatch
from dlrm_data.synthetic import Synthetic
from dlrm_data.zipf import Zipf, scatter
from dlrm_train import Position, remaining

SAMPLE = DATA_DIRECTORY / "criteo_sample.csv"


def assert_same_batches(actual, expected):
    actual, expected = list(actual), list(expected)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.dense_features, other.dense_features)
        assert torch.equal(one.labels, other.labels)
        assert one.sparse_features.keys() == other.sparse_features.keys()
        assert torch.equal(one.sparse_features.values(), other.sparse_features.values())
        assert torch.equal(one.sparse_features.lengths(), other.sparse_features.lengths())


def ids_of(batches, feature):
    return torch.cat([batch.sparse_features[feature].values() for batch in batches])


@pytest.fixture(scope="module")
def census():
    return Census(batch_size=500, seed=3)


def rows_of(name):
    with gzip.open(DATA_DIRECTORY / name, "rt") as file:
        return list(csv.DictReader(file, skipinitialspace=True))


# Every data set, small: what holds for each of them.
@pytest.fixture(params=["census", "criteo", "synthetic"])
def dataset(request, census):
    if request.param == "census":
        return census
    if request.param == "criteo":
        return Criteo([SAMPLE, SAMPLE], batch_size=32)
    return Synthetic(64, tables=4, rows_per_table=1000, steps=7, seed=1)


def test_an_epoch_resumes_at_any_batch(dataset):
    whole = list(dataset.train_batches(1))
    for first in (0, 1, len(whole) - 1, len(whole)):
        assert_same_batches(dataset.train_batches(1, first), whole[first:])


def test_batches_match_what_the_dataset_declares(dataset):
    batches = [*dataset.train_batches(0), *dataset.test_batches()]
    for batch in batches:
        size = len(batch.labels)
        assert batch.dense_features.shape == (size, dataset.dense_features)
        assert batch.dense_features.dtype == batch.labels.dtype == torch.float32
        assert batch.dense_features.isfinite().all()
        assert batch.sparse_features.keys() == list(dataset.feature_names)
        assert batch.sparse_features.values().dtype == torch.int64
        assert batch.sparse_features.lengths().tolist() == [1] * size * len(dataset.feature_names)
        assert set(batch.labels.tolist()) <= {0.0, 1.0}
    if dataset.train_size is not None:
        assert sum(len(b.labels) for b in dataset.train_batches(0)) == dataset.train_size


def test_a_run_continued_from_any_position_sees_the_same_batches(dataset):
    whole = list(remaining(dataset, Position(), epochs=2))
    assert [after.step for _, after in whole] == list(range(1, len(whole) + 1))
    assert whole[-1][1] == Position(epoch=2, batch=0, step=len(whole))
    for done in (1, len(whole) // 2, len(whole) // 2 + 1, len(whole)):
        rest = list(remaining(dataset, whole[done - 1][1], epochs=2))
        assert [after for _, after in rest] == [after for _, after in whole[done:]]
        assert_same_batches((b for b, _ in rest), (b for b, _ in whole[done:]))


def test_stable_hash_never_changes():
    assert stable_hash("") == -5426141060434712860
    assert stable_hash("Private&Bachelors") == -2497076285147798246


def test_census_ids_are_hashes_of_the_categories_and_their_pairs(census):
    people = rows_of("adult_test.csv.gz")
    batches = list(census.test_batches())
    assert len(census.feature_names) == 36
    for name in CATEGORIES:
        expected = [stable_hash(person[name]) for person in people]
        assert ids_of(batches, name).tolist() == expected
    for left, right in CROSSES:
        pairs = {(person[left], person[right]) for person in people}
        assert len(ids_of(batches, f"{left}_x_{right}").unique()) == len(pairs)


def test_census_labels_are_those_of_the_files(census):
    labels = torch.cat([batch.labels for batch in census.test_batches()])
    assert labels.tolist() == [row["Y"] == ">50K." for row in rows_of("adult_test.csv.gz")]
    # The counts that the data set's own description gives.
    assert (len(labels), int(labels.sum())) == (16_281, 3_846)
    labels = torch.cat([batch.labels for batch in census.train_batches(0)])
    assert (len(labels), int(labels.sum())) == (32_561, 7_841)


def test_census_numbers_are_standardised_on_the_training_part(census):
    dense = torch.cat([batch.dense_features for batch in census.train_batches(0)]).double()
    torch.testing.assert_close(dense.mean(0), torch.zeros(5).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(dense.std(0), torch.ones(5).double(), atol=1e-3, rtol=0)
    gains, test_gains = (
        np.log1p([float(person["capital-gain"]) for person in rows_of(name)])
        for name in ("adult_train.csv.gz", "adult_test.csv.gz")
    )
    dense = torch.cat([batch.dense_features for batch in census.test_batches()])
    expected = (test_gains - gains.mean()) / gains.std()
    np.testing.assert_allclose(dense[:, NUMBERS.index("capital-gain")], expected, atol=1e-4)


def test_census_order_depends_on_seed_and_epoch(census):
    first = next(census.train_batches(0)).dense_features
    assert not torch.equal(first, next(census.train_batches(1)).dense_features)
    other = Census(batch_size=500, seed=4)
    assert not torch.equal(first, next(other.train_batches(0)).dense_features)


def criteo_lines():
    """The sample's lines as Criteo's own files have them: tab-separated, integers, no header."""
    with SAMPLE.open() as file:
        rows = list(csv.reader(file))[1:]
    return [[row[0], *(cell.removesuffix(".0") for cell in row[1:14]), *row[14:]] for row in rows]


def write(path, rows, separator="\t"):
    text = "".join(separator.join(row) + "\n" for row in rows)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        file.write(text)
    return path


def read_all(path):
    return Samples.concatenate(list(read_criteo(path)))


def assert_same_samples(actual, expected):
    np.testing.assert_array_equal(actual.dense, expected.dense)
    np.testing.assert_array_equal(actual.ids, expected.ids)
    np.testing.assert_array_equal(actual.labels, expected.labels)


def test_criteo_values():
    samples = read_all(SAMPLE)
    lines = criteo_lines()
    assert len(samples) == len(lines) == 200
    numbers = [[float(cell or 0) for cell in line[1:14]] for line in lines]
    expected = [[math.copysign(math.log1p(abs(x)), x) for x in row] for row in numbers]
    assert min(map(min, numbers)) < 0  # the sample has negative integers
    np.testing.assert_allclose(samples.dense, expected, rtol=1e-6)
    assert samples.ids.tolist() == [[int(cell, 16) if cell else -1 for cell in line[14:]] for line in lines]
    assert samples.labels.tolist() == [float(line[0]) for line in lines]


@pytest.mark.parametrize("name", ["train.txt", "day_0.gz"])
@pytest.mark.parametrize("block_bytes", [1000, 1 << 20])
def test_criteo_reads_every_spelling_of_the_same_lines(tmp_path, monkeypatch, name, block_bytes):
    monkeypatch.setattr(criteo, "BLOCK_BYTES", block_bytes)
    assert_same_samples(read_all(write(tmp_path / name, criteo_lines())), read_all(SAMPLE))


def test_criteo_holds_out_every_tenth_line_across_files(tmp_path):
    lines = criteo_lines()
    files = [write(tmp_path / "day_0", lines[:77]), write(tmp_path / "day_1", lines[77:])]
    whole = read_all(SAMPLE)
    data = Criteo(files, batch_size=16)
    train, test = list(data.train_batches(0)), list(data.test_batches())
    assert [len(batch.labels) for batch in train] == [16] * 11 + [4]
    held_out = np.arange(200) % 10 == 9
    np.testing.assert_array_equal(ids_of(train, "C3"), whole.ids[~held_out, 2])
    np.testing.assert_array_equal(ids_of(test, "C3"), whole.ids[held_out, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row[:-1], "40 columns, got 39"),
        (lambda row: [*row, ""], "40 columns, got 41"),
        (lambda row: [], "label must be 0 or 1, got nothing"),
        (lambda row: ["2", *row[1:]], "label must be 0 or 1, got 2"),
        (lambda row: ["", *row[1:]], "label must be 0 or 1, got nothing"),
        (lambda row: [*row[:3], "many", *row[4:]], "I3: .*'many'"),
        (lambda row: [*row[:3], "nan", *row[4:]], "I3 must be an integer, got nan"),
        (lambda row: [*row[:20], "xyz", *row[21:]], "C7 must .* hexadecimal digits, got 'xyz'"),
        (lambda row: [*row[:20], "123456789", *row[21:]], "C7 must .* got '123456789'"),
    ],
)
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("block_bytes", [2000, 1 << 20])
def test_criteo_names_file_and_line_of_what_is_malformed(tmp_path, monkeypatch, change, message, header, block_bytes):
    monkeypatch.setattr(criteo, "BLOCK_BYTES", block_bytes)
    lines = criteo_lines()
    lines[150] = change(lines[150])
    path = write(tmp_path / "bad", [COLUMNS, *lines] if header else lines, "," if header else "\t")
    with pytest.raises(MalformedFileError, match=rf"bad, line {151 + header}\b.*{message}"):
        read_all(path)


def test_criteo_refuses_an_empty_file(tmp_path):
    with pytest.raises(MalformedFileError, match="empty: Empty CSV file"):
        read_all(write(tmp_path / "empty", []))


def test_rebatch_does_not_depend_on_the_chunks():
    whole = Samples(np.arange(20).reshape(10, 2), np.arange(10).reshape(10, 1), np.arange(10))
    for cuts in ([], [5], [1, 2, 3], [4, 4, 9], [0, 10]):
        chunks = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, 10], strict=True)]
        pieces = list(rebatch(chunks, 4))
        assert [piece.labels.tolist() for piece in pieces] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert_same_samples(Samples.concatenate(pieces), whole)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.999999, 1.0, 1.05, 2.0, 4.0])
@pytest.mark.parametrize("n", [1, 2, 100])
def test_zipf_of_few_ranks(n, exponent):
    assert_zipfian(n, exponent, ranks=range(1, n + 1))


@pytest.mark.parametrize("exponent", [1.05, 1.5, 3.0, 30.0])
def test_zipf_of_a_billion_ranks(exponent):
    assert_zipfian(10**9, exponent, ranks=[1, 2, 3, 10, 1000, 10**6, 5 * 10**8, 10**9])


def assert_zipfian(n, exponent, ranks):
    """Compares the share of draws up to each rank with SciPy's, within five standard errors."""
    draws = Zipf(n, exponent).sample(np.random.default_rng(0), 200_000)
    assert draws.dtype == np.int64
    assert draws.min() >= 1
    assert draws.max() <= n
    for rank in ranks:
        share = min(1.0, stats.zipfian(exponent, n).cdf(rank))
        error = math.sqrt(share * (1 - share) / len(draws))
        assert np.mean(draws <= rank) == pytest.approx(share, abs=5 * error + 1e-9)


def test_zipf_is_a_function_of_the_generator():
    zipf = Zipf(10**6, 1.05)
    one, other = (zipf.sample(np.random.default_rng(7), 1000) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("n", "exponent"), [(0, 1.0), (5, -0.1), (5, math.inf), (5, math.nan)])
def test_zipf_refuses_what_is_no_distribution(n, exponent):
    with pytest.raises(ValueError, match="Zipf needs"):
        Zipf(n, exponent)


def test_scatter_is_splitmix64s_finalizer():
    # The first output of SplitMix64 seeded with 0, as published with it.
    state = np.array([0x9E3779B97F4A7C15], dtype=np.uint64).view(np.int64)
    assert scatter(state, table=0).view(np.uint64).item() == 0xE220A8397B1DCDAF


def test_scatter_keeps_ids_apart():
    ranks = np.arange(1, 100_001)
    ids = np.concatenate([scatter(ranks, table) for table in range(3)])
    assert len(np.unique(ids)) == len(ids)
    assert np.histogram(ids, bins=16, range=(-(2.0**63), 2.0**63))[0].min() > len(ids) / 17


def test_synthetic_depends_on_seed_epoch_and_number_alone():
    options = {"tables": 3, "rows_per_table": 10**9, "steps": 4}
    data = Synthetic(32, **options, seed=5)
    assert_same_batches(Synthetic(32, **options, seed=5).train_batches(0), data.train_batches(0))
    others = [
        next(Synthetic(32, **options, seed=6).train_batches(0)),
        next(data.train_batches(1)),
        next(data.train_batches(0, 1)),
        next(data.test_batches()),
    ]
    first = next(data.train_batches(0)).dense_features
    assert not any(torch.equal(first, other.dense_features) for other in others)


def test_synthetic_labels_can_be_learnt_from_the_numbers():
    data = Synthetic(2000, tables=1, rows_per_table=10, steps=1)
    train, test = next(data.train_batches(0)), next(data.test_batches())
    signs = 2 * train.labels[:, None] - 1
    weights = torch.linalg.lstsq(train.dense_features, signs).solution
    predicted = (test.dense_features @ weights).squeeze(1) > 0
    assert (predicted == test.labels.bool()).float().mean() > 0.75
