"""The code on the pages of the documentation runs, from the top of a page to its bottom."""

import re
from itertools import zip_longest
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

for _package in ("faiss", "onnxruntime", "pyarrow", "xxhash"):  # which pages need
    pytest.importorskip(_package)

from documented_pages import PAGES  # noqa: E402  # which imports them

_ROOT = Path(__file__).parent.parent
_SYBIL = Sybil([PythonCodeBlockParser()])


def _nothing(names: dict[str, object]) -> None:
    pass


def test_every_page_with_code_is_run() -> None:
    pages = [_ROOT / "README.md", *(_ROOT / "docs").rglob("*.md"), _ROOT / "examples" / "README.md"]
    with_code = {str(page.relative_to(_ROOT)) for page in pages if re.search(r"^```python$", page.read_text(), re.M)}
    assert with_code == set(PAGES)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = _SYBIL.parse(_ROOT / page)
    monkeypatch.chdir(tmp_path)
    with PAGES[page]() as names:
        document.namespace.update(names)
        for example, before in zip_longest(document.examples(), [_nothing, *names.get("then", ())], fillvalue=_nothing):
            before(document.namespace)
            example.evaluate()
        if "store" in document.namespace:
            document.namespace["store"].close()
