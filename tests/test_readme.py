"""The README's commands and code, executed.

Every line of a ```bash block is checked: targets against the Makefile, `python -m ...` against that program's own
parser. Those about Two-Room are then run in order, with `SMALLER` appended, in an empty folder. Every ```python block
is executed there, in order and in one interpreter, so that a later block may use the names of an earlier one. A block
whose fence says `no-run` (```python no-run) is compiled only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="README.md is not written yet")

#: Appended to a command of the README, where the last value of a flag counts, so that the whole line takes seconds.
SMALLER = {
    "collect": ["--episodes", "6", "--workers", "1"],
    "agents": ["--steps", "2"],
    "benchmarks plan": ["--n-pairs", "2"],
    "benchmarks report": [],
}
#: Programs that a README may name without our checking what follows them.
OTHERS = {"apt-get", "cd", "cp", "git", "ls", "open", "pip", "source", "sudo", "tar", "xdg-open"}


class Block(NamedTuple):
    """A fenced block: the words after its fence, the line its text begins on, the text."""

    language: str
    run: bool
    line: int
    text: str


def blocks(markdown: str, *languages: str) -> list[Block]:
    """Returns the fenced blocks of these languages."""
    found = []
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL):
        words = match[1].split()
        if words and words[0] in languages:
            line = markdown.count("\n", 0, match.start()) + 2
            found.append(Block(words[0], "no-run" not in words, line, match[2]))
    return found


def commands(markdown: str) -> list[list[str]]:
    """Returns the commands of the shell blocks as words, without prompts, comments and assignments."""
    found = []
    for block in blocks(markdown, "bash", "sh", "console", "shell"):
        for line in re.split(r"\n|&&|;", block.text.replace("\\\n", " ")):
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def module_call(words: list[str]) -> tuple[str, list[str]] | None:
    """Returns (module, arguments) of a `python -m module arguments`, or of our command for it, else None."""
    if words[0].startswith("lewm-"):
        return {"lewm-gym": "lewm_gym"}.get(words[0], words[0].removeprefix("lewm-")), words[1:]
    if re.fullmatch(r"(\S*/)?python3?", words[0]) and words[1:2] == ["-m"]:
        return words[2], words[3:]
    return None


class Parsed(Exception):
    """Raised in place of running a program whose parser accepts its arguments."""


def check_arguments(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails unless the parser of `python -m module` accepts these arguments."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        parse(self, *args, **kwargs)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [module, *arguments])
        if importlib.util.find_spec(module).submodule_search_locations:
            program = importlib.import_module(f"{module}.__main__").main
        else:
            program = lambda: runpy.run_module(module, run_name="__main__")  # noqa: E731
        try:
            program()
        except Parsed:
            return
        except SystemExit as stop:
            assert stop.code == 0, f"python -m {module} {shlex.join(arguments)} is not accepted"


def test_readme_shows_commands_and_code() -> None:
    markdown = README.read_text(encoding="utf-8")
    assert blocks(markdown, "python"), "no ```python block"
    assert {"make demo", "make test"} <= {" ".join(words[:2]) for words in commands(markdown)}


def test_every_command_of_the_readme_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(README.read_text(encoding="utf-8")):
        call = module_call(words)
        if words[0] == "make":
            names = [word for word in words[1:] if "=" not in word]
            assert set(names) <= set(targets), f"the Makefile has no target for: {shlex.join(words)}"
        elif call and (ROOT / call[0].split(".")[0]).is_dir():
            check_arguments(*call, monkeypatch)
        else:
            assert call or Path(words[0]).name in OTHERS or words[0] == ".", f"unknown: {shlex.join(words)}"


def run(arguments: list[str], folder: Path, timeout_s: float = 280) -> str:
    """Returns the standard output of a program run with this Python in `folder`; fails with its error."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands about Two-Room have been run, smaller."""
    folder = tmp_path_factory.mktemp("readme")
    ran = []
    for words in commands(README.read_text(encoding="utf-8")):
        call = module_call(words)
        if call is None:
            continue
        module, arguments = call
        name = f"{module} {arguments[0]}" if module == "benchmarks" else module
        text = shlex.join(arguments)
        if name not in SMALLER or "..." in text or name in ran:
            continue
        if name == "benchmarks report" or re.search(r"two_room", text):
            run(["-m", module, *arguments, *SMALLER[name]], folder)
            ran.append(name)
    assert set(ran) == set(SMALLER), f"the README should show the whole line on two_room; it shows {ran}"
    return folder


def test_commands_of_the_readme_lead_from_nothing_to_a_report(folder: Path) -> None:
    assert list(folder.rglob("*.html")), sorted(path.name for path in folder.rglob("*"))[:50]


def test_code_of_the_readme_runs(folder: Path) -> None:
    shown = blocks(README.read_text(encoding="utf-8"), "python")
    for block in shown:  # line numbers of a traceback are then the README's
        compile("\n" * (block.line - 1) + block.text, str(README), "exec")
    script = folder / "blocks.py"
    texts = [(block.line, block.text) for block in shown if block.run]
    script.write_text(
        f"namespace = {{'__name__': 'readme'}}\n"
        f"if __name__ == '__main__':\n"
        f"    for line, text in {texts!r}:\n"
        f"        exec(compile('\\n' * (line - 1) + text, {str(README)!r}, 'exec'), namespace)\n"
    )
    run([script.name], folder)
