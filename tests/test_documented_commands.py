"""Every make target, program and command that README and docs name is there, and CI runs it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from damo_torchrec.cli import main as cli

PROJECT = Path(__file__).parents[1]
PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "benchmarks/README.md")),
    *sorted((PROJECT / "docs").glob("*.md")),
]
CI = [
    *(PROJECT / ".ci" / name for name in ("run", "weekly")),
    *(PROJECT / ".github" / "workflows" / name for name in ("versions.yml", "wheels.yml")),
]


def code(page: Path) -> Iterator[str]:
    """What a page shows as code: blocks, a line each, and what is between backticks."""
    fenced = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def named(pattern: str) -> set[str]:
    """What a pattern finds in the pages' code."""
    return {found for page in PAGES for line in code(page) for found in re.findall(pattern, line)}


def commands_of_ci() -> str:
    """Without comments, and with braces expanded."""
    text = "\n".join(re.sub(r"(^|\s)#.*", "", line) for path in CI for line in path.read_text().splitlines())
    return re.sub(
        r"(\S*)\{(\w+(?:,\w+)+)\}(\S*)",
        lambda match: " ".join(f"{match[1]}{part}{match[3]}" for part in match[2].split(",")),
        text,
    )


def rules() -> list[tuple[set[str], set[str]]]:
    """The Makefile's: targets, and what they need."""
    makefile = (PROJECT / "Makefile").read_text()
    found = re.findall(r"^([a-z][a-z -]*):(?!=)((?: [a-z-]+)*)", makefile, re.MULTILINE)
    return [(set(targets.split()), set(needed.split())) for targets, needed in found]


def targets_of_ci() -> set[str]:
    """Those that CI makes, those that they need, and those that have the same recipe."""
    made = set(re.findall(r"^(?: +- run: )?make ([a-z-]+)", commands_of_ci(), re.MULTILINE))
    while True:
        more = made.union(*(needed for targets, needed in rules() if targets & made))
        more |= set().union(*(targets for targets, _ in rules() if targets & more))
        if more == made:
            return made
        made = more


def test_the_pages_name_commands():
    assert {"test", "lint", "bench-quick", "chaos"} <= named(r"^make ([a-z][a-z-]*)")
    assert {"examples/quickstart.py", "benchmarks/plots.py"} <= named(r"\b((?:examples|benchmarks)/\w+\.py)")
    assert named(r"^damo-torchrec ([a-z]+)") >= {"info", "verify", "repair", "expired", "forget", "convert", "doctor"}


def test_every_target_that_a_page_names_exists_and_is_made_by_ci():
    wanted = named(r"^make ([a-z][a-z-]*)")
    assert wanted - set().union(*(targets for targets, _ in rules())) == set()
    assert wanted - targets_of_ci() == set()


def test_every_program_that_a_page_names_exists_and_is_run():
    programs = named(r"\b((?:examples|benchmarks|scripts)/\w+\.(?:py|sh))") | named(r"(\.ci/\w+)")
    assert [name for name in sorted(programs) if not (PROJECT / name).is_file()] == []
    tests = "\n".join(path.read_text() for path in (PROJECT / "tests" / "examples").glob("test_*.py"))
    run_by = (
        commands_of_ci() + (PROJECT / "Makefile").read_text() + (PROJECT / ".github/workflows/weekly.yml").read_text()
    )
    unrun = [
        name
        for name in sorted(programs)
        if name not in run_by and f'"{Path(name).stem}"' not in tests and f'"{Path(name).name}"' not in tests
    ]
    assert unrun == []


def test_every_example_and_benchmark_is_in_its_folders_readme():
    for folder in ("examples", "benchmarks"):
        page = (PROJECT / folder / "README.md").read_text()
        assert [path.name for path in sorted((PROJECT / folder).glob("*.py")) if path.name not in page] == []


@pytest.mark.parametrize("command", sorted(named(r"\bdamo-torchrec ([a-z]+)")))
def test_every_command_of_the_tool_that_a_page_names_is_there(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"damo-torchrec {command}" in capsys.readouterr().out
