"""`Predictor`: answers requests from a serving checkpoint, and follows the training that goes on elsewhere."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from damo_torchrec.checkpoints.lineage import Lineage
from damo_torchrec.checkpoints.listing import is_checkpoint
from damo_torchrec.checkpoints.manifest import Manifest
from damo_torchrec.errors import StoreClosedError
from damo_torchrec.options import StoreOptions
from damo_torchrec.serving.arrays import Array
from damo_torchrec.serving.dense import DENSE_FILE, DensePart
from damo_torchrec.serving.histogram import Histogram
from damo_torchrec.serving.lookups import Lookup
from damo_torchrec.serving.place import Following, Place
from damo_torchrec.serving.requests import Argument, Request, Signature
from damo_torchrec.serving.states import State, States
from damo_torchrec.serving.stats import PredictorStats
from damo_torchrec.serving.updates import Updates
from damo_torchrec.serving.watcher import Watcher
from damo_torchrec.serving.working_copy import means_of, open_tables, open_working_copy


class Predictor:
    """A model that answers requests: rows on disk, cached in a memory budget, and the dense part in ONNX Runtime.

    ::

        with damo.serving.Predictor("checkpoints/serving", memory_budget="4GiB") as predictor:
            predictor.predict({"dense_features": dense, "sparse_features": features})["output"]

    `predict` may be called by several threads at once: lookups run one after the other, dense parts side by side.
    Nothing is written into the checkpoint: rows are in a temporary directory beside it, which shares its files by hard
    links, or is a copy among other temporary files where that cannot be.

    Args:
        path: a checkpoint that `damo_torchrec.serving.export` made.
        memory_budget: bytes, or a text like ``"512MiB"``, for everything that has to do with rows. The dense part is
            not in it.
        num_threads: that one lookup, and one run of the dense part, may use; None for as many as this process may use.

    Raises:
        ValueError: `path` is no serving checkpoint, or the budget is below the least.
        CorruptionError: it is damaged.
        SchemaMismatchError: its dense part does not go with its rows.
        OutOfSpaceError, DamoError: the disk is full or refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory_budget: int | str = "1GiB",
        num_threads: int | None = None,
    ) -> None:
        StoreOptions(num_threads=num_threads)  # refuses what ONNX Runtime would try to start
        self._path = Path(path).absolute()
        if not is_checkpoint(self._path):
            raise ValueError(f"{self._path} is not a checkpoint: damo_torchrec.serving.export makes one to serve")
        manifest = Manifest.read(self._path)
        if DENSE_FILE not in manifest.files:
            raise ValueError(
                f"{self._path} has no {DENSE_FILE}: damo_torchrec.serving.export makes a checkpoint to serve"
            )
        manifest.check_files(self._path, tables=False)  # those are read for the working copy
        self._num_threads = num_threads
        dense = DensePart(self._path / DENSE_FILE, manifest.read_file(self._path, DENSE_FILE), num_threads)
        dense.check(manifest.seed, manifest.tables)
        lineage = Lineage.read(self._path, manifest)
        outputs = [output for lookup in dense.card.lookups for output in lookup.plan.outputs]
        self._store = open_working_copy(self._path, memory_budget, num_threads)
        try:
            open_tables(self._store, manifest, outputs)
            means = means_of(self._store, outputs)
            self._lookups = [Lookup(card, dense.card.features, self._store) for card in dense.card.lookups]
        except BaseException:
            self._store.close()
            raise
        card, most_ids = dense.card, self._store.session.memory_budget // 8
        self._signature = Signature(card.features, dense.arguments, card.jagged, most_ids)
        place = Place.of_checkpoint(manifest, lineage)
        first = State(dense, {}, manifest.step, (manifest.id,), place, means)
        self._states = States(f"the predictor of {self._path}", first)
        self._updates = Updates(self._store, {output.table: output for output in outputs}, self._states, num_threads)
        self._histogram = Histogram()
        self._watchers: list[Watcher] = []
        self._closing = threading.Lock()

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return self._path

    @property
    def step(self) -> int:
        """The step of the rows that the next request is answered from."""
        return self._states.current.step

    @property
    def history(self) -> tuple[str, ...]:
        """Ids of the checkpoint and of the deltas that were applied to it, oldest first."""
        return self._states.current.history

    @property
    def place(self) -> Place:
        """Where what is served is among the states that its store went through."""
        return self._states.current.place

    @property
    def passed_over(self) -> int:
        """Entries of watched directories that are no deltas, or are refused, as of the last look."""
        return sum(watcher.passed_over for watcher in list(self._watchers))

    @property
    def following(self) -> Following:
        """How far what is served is behind what is published in watched directories, as of the last look."""
        return sum((watcher.following for watcher in list(self._watchers)), Following(self.step))

    @property
    def age(self) -> float | None:
        """Seconds since what is served was exported or published; None if that does not say when it was."""
        made = self._states.current.place.sequence
        return max(time.time() - made / 1e6, 0.0) if made else None

    @property
    def inputs(self) -> dict[str, Argument]:
        """The arrays of a request, by name."""
        return self._signature.arguments

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """The keys of each KeyedJaggedTensor that the model takes, in order."""
        return {name: feature.keys for name, feature in self._signature.features.items()}

    @property
    def string_salts(self) -> dict[str, dict[str, int]]:
        """Of each KeyedJaggedTensor: by key whose tables have a `TableOptions.string_salt`, that salt."""
        return {name: dict(feature.string_salts) for name, feature in self._signature.features.items()}

    @property
    def outputs(self) -> dict[str, tuple[int | str | None, ...]]:
        """Shapes of the outputs, by name: sizes, names of sizes as in `inputs`, or None for what is not known."""
        return dict(self._states.current.dense.outputs)

    @property
    def by_sample(self) -> bool | None:
        """Whether a sample's answer is the same whatever is asked with it. None if the export did not find out."""
        return self._states.current.dense.card.by_sample

    def check(self, inputs: Mapping[str, Any]) -> Request:
        """Checks the inputs of `predict`, with the same arguments and errors, and returns them as arrays.

        Returns:
            Request: `arrays`, which `predict` takes, by name; and `batch`, the number of samples.
        """
        return self._signature.check(inputs)

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Answers a request, all of it from one state of the model.

        Args:
            inputs: by name, what the model's forward takes. Tensors as NumPy arrays, torch tensors or nested lists. A
                KeyedJaggedTensor ``NAME`` with F keys and B samples as such, with its keys in any order, or as
                ``NAME.values``, integers ``(N,)``, by key, then sample; ``NAME.lengths``, integers ``(F, B)``; and if
                it has weights ``NAME.weights``, numbers ``(N,)``; or ``NAME`` is a dict that has for each key a list of
                B lists of ids, and ``NAME.weights`` the same of numbers. Numbers become float32 by rounding; infinities
                and NaN are taken as they are. Among ids in lists there may be strings, or bytes, of keys that
                `string_salts` has: their ids are `damo_torchrec.ids.hash_strings`.

        Returns:
            dict: outputs by name, the first dimension being samples.

        Raises:
            TypeError: an input is not made of numbers of its kind: ids are integers, not floats or bools.
            ImportError: there are strings, and the package ``xxhash`` is missing.
            ValueError: inputs are missing or not known, an id does not fit int64, shapes do not fit the model or each
                other, lengths are negative or do not sum to N, there are too many ids for the memory budget, or strings
                where training hashed none.
            StoreClosedError: the predictor is closed.
            DamoError: rows cannot be read.
        """
        begin = time.perf_counter()
        request = self.check(inputs)
        with self._states.use() as state:
            # A graph may fail at what has no samples.
            outputs = state.dense.of_no_sample() if request.batch == 0 else None
            if outputs is None:
                arrays = dict(request.arrays)
                for lookup in self._lookups:
                    arrays.update(lookup.run(request, state.overlay, state.means))
                outputs = state.dense.run(arrays)
        self._histogram.add(time.perf_counter() - begin)
        return outputs

    def apply_delta(self, path: str | os.PathLike[str]) -> None:
        """Goes on to the state that a delta leads to, while requests go on.

        A request is answered from the state before or from the one after, as a whole: those that begin once the delta
        is verified, from the one after. Then its rows are written into the store. They are copied first: what
        becomes of the delta's files in the meantime is found, or of no effect.

        Args:
            path: a delta that `EmbeddingStore.export_delta` or `DeltaPublisher` made, of the store that the checkpoint
                is from. It may hold a new dense part.

        Raises:
            ValueError: it is no delta, or does not follow what is served, or was applied before.
            CorruptionError: it is damaged.
            SchemaMismatchError: its tables or its dense part are others than those that are served.
            StoreClosedError: the predictor is closed.
            OutOfSpaceError, DamoError: the disk is full or refuses. If that was met with in the end, the new state is
                served, from copies of the delta's arrays; the next call writes what is missing first.
        """
        self._updates.apply(path)

    def watch(self, directory: str | os.PathLike[str], poll_seconds: float = 1.0) -> None:
        """Applies deltas that appear in a directory from now on, and those that are there, in a thread of its own.

        Those are taken that lead to the newest of them, as few as there are on the way. What `apply_delta` refuses, and
        what is a link or no delta, is logged once, counted in `stats` and passed over. Those of before the checkpoint,
        and those that were applied, may stay there. `following` tells whether the newest can be reached. `close` ends
        it.

        Args:
            directory: where `DeltaPublisher` writes, for example.
            poll_seconds: between two looks into it.

        Raises:
            ValueError: it is not a directory, or `poll_seconds` is not positive.
            StoreClosedError: the predictor is closed.
        """
        directory = Path(directory).absolute()
        if not directory.is_dir():
            raise ValueError(f"{directory} is not a directory")
        if not poll_seconds > 0:
            raise ValueError(f"poll_seconds must be positive, got {poll_seconds}")
        with self._closing:
            if self._store.closed:
                raise StoreClosedError(f"the predictor of {self._path} is closed")
            watcher = Watcher(directory, poll_seconds, self.apply_delta, lambda: self.place)
            self._watchers.append(watcher)

    def stats(self) -> PredictorStats:
        """Figures since the predictor was made."""
        rows, updates = self._store.stats(), self._updates.stats
        state = self._states.current
        return PredictorStats(
            latencies=self._histogram.latencies(),
            hits=sum(table.evaluation.hits for table in rows.tables.values()),
            misses=sum(table.evaluation.misses for table in rows.tables.values()),
            memory_bytes=rows.memory_bytes,
            memory_budget=rows.memory_budget,
            step=state.step,
            history=state.history,
            deltas_applied=updates.applied,
            last_delta_step=updates.last_step,
            last_delta_time=updates.last_time,
            passed_over=self.passed_over,
            following=self.following,
            age=self.age,
        )

    def close(self) -> None:
        """Waits for the requests that are being answered, ends `watch`, and removes the temporary rows. Idempotent."""
        with self._closing:
            for watcher in self._watchers:
                watcher.stop()
            self._updates.stop()
            for watcher in self._watchers:
                watcher.join()
            self._states.close()
            self._store.close()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Predictor({str(self._path)!r}, step={self.step})"
