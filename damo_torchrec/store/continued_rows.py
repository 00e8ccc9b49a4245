"""Whether a store's rows of an earlier run are trained on by a program that has not asked for them."""

import warnings
from pathlib import Path

from damo_torchrec.errors import ContinuedRowsWarning


class ContinuedRows:
    """Warns, once, before the first update of a session that opened tables which an earlier one has trained.

    Rows outlive the program, and dense weights do not: a program that is run again trains the rows of the first run
    under dense weights that know nothing of them. The session's mutex guards it.

    Args:
        path: the store's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._updates = 0
        self._told = False

    def note_open(self, updates: int) -> None:
        """Says that tables were opened, and how many updates, at most, an earlier session has made of one of them."""
        self._updates = max(self._updates, updates)

    def ask_for(self) -> None:
        """Says that the program has chosen its rows, by `load_model` or a restore: there is nothing to warn of."""
        self._told = True

    def note_update(self) -> None:
        """Says that an update comes."""
        if self._updates == 0 or self._told:
            return
        self._told = True
        warnings.warn(
            f"the store {self._path} holds rows that an earlier run has trained (step {self._updates}), and this "
            "run trains them on without having loaded the model that they were trained with. To resume that run, call "
            "damo_torchrec.load_model(path, model, optimizer=...), or CheckpointManager.restore, before training; to "
            "begin anew, name a fresh directory. If this is meant, call the store's restore() before training, or have "
            "Python's warnings ignore damo_torchrec.ContinuedRowsWarning",
            ContinuedRowsWarning,
            stacklevel=4,
        )
