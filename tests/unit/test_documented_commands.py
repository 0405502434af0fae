"""Commands in the documents: each of ours exists with its options; each other one was run, or says what it needs."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from service.cli.app import command_line

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DEPLOYMENT = ["INSTALL.md", "CONTAINER.md", "UPGRADING.md", "RELEASING.md"]
"""Besides KUBERNETES.md, which `tests/helm/test_docs.py` holds to the same."""
MARK = re.compile(r" # .*\((?:ran|needs|not run)\b[^()]*\)$")
EVERYWHERE = {"--help", "--version", "--config", "--debug"}


def blocks(document: Path) -> Iterator[str]:
    """Yield the blocks that hold commands, with continued lines joined."""
    for language, text in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", document.read_text(), re.M | re.S):
        if language in {"", "sh"}:
            yield re.sub(r"\\\n\s*", "", text)


def commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each use of our program in the blocks: the line, and the words behind the program's name."""
    for block in blocks(document):
        for line in block.splitlines():
            first = re.split(r"[ \t]#[ \t]|  +[a-z]", line.strip())[0]
            for part in re.split(r"&&|\|\|?|;|<", first):
                found = re.match(r"(?:\S+=\S+ |sudo |docker exec (?:-\S+ )*\S+ )*deviceon-backup( .*)?$", part.strip())
                if found is not None:
                    yield line, shlex.split((found[1] or "").replace("[", " ").replace("]", " "))


def problem(words: list[str]) -> str | None:
    """Say what is wrong with the words behind the program's name; None when nothing is."""
    command: click.Command = command_line
    known = set(EVERYWHERE)
    while words:
        known |= {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        if isinstance(command, click.Group) and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        elif words[0].startswith("-"):
            if (option := words.pop(0).partition("=")[0]) not in known:
                return f"no option {option}"
        elif isinstance(command, click.Group):
            return f"no command {words[0]}"
        else:
            words.pop(0)
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_ours_exists_with_its_options(document: Path) -> None:
    wrong = [f"{line}: {what}" for line, words in commands(document) if (what := problem(list(words)))]
    assert wrong == []


def test_a_command_or_an_option_that_does_not_exist_is_seen() -> None:
    assert problem(["bakcup"]) == "no command bakcup"
    assert problem(["backup", "--fast"]) == "no option --fast"
    assert problem(["key", "ad", "ARCHIVE"]) == "no command ad"
    assert problem(["key", "add", "ARCHIVE", "--recipient", "age1..."]) is None
    assert sum(1 for document in DOCUMENTS for _ in commands(document)) > 100


def is_held_elsewhere(line: str) -> bool:
    """Tell whether a line is no command, is one of ours, or is a target of the Makefile that exists."""
    text = line.strip()
    if found := re.match(r"make ([a-z]+)", text):
        return re.search(rf"^{found[1]}:", (ROOT / "Makefile").read_text(), re.M) is not None
    return not text or text.startswith("#") or re.match(r"(sudo )?deviceon-backup( |$)", text) is not None


def run_below(root: Path, line: str) -> None:
    """Run a line that installs files, with `root` in the place of `/`."""
    line = re.sub(r" (/(?:etc|srv|var)/)", rf" {root}\1", line)
    target = Path(shlex.split(line, comments=True)[-1])
    (target if line.split("#")[0].rstrip().endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
    subprocess.run(["sh", "-euc", line], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", DEPLOYMENT)
def test_every_other_command_of_a_deployment_is_run_here_or_says_what_it_needs(name: str, tmp_path: Path) -> None:
    lines = [line for block in blocks(ROOT / "docs" / name) for line in block.splitlines()]
    unmarked = [line for line in lines if not is_held_elsewhere(line) and not MARK.search(line)]
    for line in unmarked:
        assert line.startswith("install "), line
        run_below(tmp_path, line)


def test_the_files_that_the_commands_name_are_there() -> None:
    named = {
        path
        for document in DOCUMENTS
        for block in blocks(document)
        for path in re.findall(r"(?<![\w/.])((?:examples|packaging|scripts)/[\w./*-]+)", block)
    }
    assert len(named) > 8
    for path in named:
        assert list(ROOT.glob(path.rstrip("/"))), path
