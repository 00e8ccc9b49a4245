"""Finding all damage of an exported model, by what its card says."""

from collections.abc import Iterator
from pathlib import Path

from damo_torchrec.checkpoints.file_entry import FileEntry, Finding
from damo_torchrec.errors import CorruptionError
from damo_torchrec.files import os_errors
from damo_torchrec.graph_card import SEAL, is_sealed
from damo_torchrec.graph_check import check_exported_graph, data_file, external_files
from damo_torchrec.onnx.card import model_card


def export_findings(file: Path) -> Iterator[Finding]:
    """Yields what is not as it was written: the graph, and each of the files beside it, which are read in pieces.

    Raises:
        ValueError: it is no graph of an export.
        DamoError: it cannot be read.
    """
    try:
        card = model_card(file)
    except CorruptionError as error:
        yield Finding(file, "a graph with a card", str(error))
        return
    with os_errors(f"cannot read {file}"):
        content = file.read_bytes()
    if SEAL not in card:
        yield Finding(file, f"the graph's SHA-256 in its card, as {SEAL}", "none")
    elif not is_sealed(content, card[SEAL]):
        yield Finding(file, f"the graph that was exported, with the SHA-256 {card[SEAL]} in its card", "another one")
    named = card.get("files", {})
    for name, entry in named.items():
        try:
            path = data_file(file, name)
        except (ValueError, OSError) as error:
            found = "none" if isinstance(error, FileNotFoundError) else f"that it {error}"
            yield Finding(file.parent / name, "a file of the export", found)
            continue
        if (finding := FileEntry(entry["size"], entry["sha256"]).finding(path)) is not None:
            yield finding
    for name in sorted(external_files(content, file) - named.keys()):
        yield Finding(file.parent / name, "no file that the card does not name", "values of the graph")
    try:
        with os_errors(f"cannot read {file}"):
            check_exported_graph(file)
    except CorruptionError as error:
        yield Finding(file, "a graph of known operators, whose values are in its own files", str(error))
