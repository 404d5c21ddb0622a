"""The commands and code of the README and of the pages of documentation, executed.

Every command of a page, in ```bash blocks and in indented ones, is checked: targets against the Makefile,
`python -m ...` against that program's own parser. On the pages of `RUN`, those about Two-Room are then run in order,
with `SMALLER` appended, in one folder; its `runs/demo` is a copy of the first run. Every ```python block of these pages
is executed there, in order and in one interpreter per page, with `SHORTER` applied; a block whose fence says `no-run`,
which has a test of its own, is only compiled.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
#: Pages whose commands and code are run; docs/tasks.md and docs/your_environment.md have tests of their own.
RUN = (README, *(ROOT / "docs" / f"{name}.md" for name in ("quickstart", "datasets", "planning")))
#: Pages whose commands are checked.
CHECKED = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

pytestmark = pytest.mark.timeout(900)  # one test waits for all commands of the pages

#: Appended to a command, where the last value of a flag counts, so that each takes seconds.
SMALLER = {
    "collect": ["--episodes", "6", "--workers", "1"],
    "agents": ["--steps", "2"],
    "benchmarks plan": ["--n-pairs", "2"],
    "benchmarks report": [],
}
#: Replaced in Python code, for the same purpose.
SHORTER = {"range(200)": "range(2)", "n_steps=100": "n_steps=2", "batch_size=128": "batch_size=8"}
#: Programs that a page may name without a check of their arguments.
OTHERS = {"apt-get", "cd", "cp", "git", "ls", "open", "pip", "python", "source", "sudo", "tar", "uv", "xdg-open"}


class Block(NamedTuple):
    """A fenced block: its language, whether it is run, the line on which its text begins, the text."""

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
    """Returns the commands of shell blocks and of indented lines as words, without comments and assignments."""
    found = []
    indented = re.findall(r"^    ((?:python -m|lewm-|make|torchrun) ?\S.*)$", markdown, re.MULTILINE)
    for text in [*(block.text for block in blocks(markdown, "bash")), *indented]:
        for line in re.split(r"\n|&&|;", re.sub(r"(^| +)#.*", "", text.replace("\\\n", " "), flags=re.MULTILINE)):
            words = shlex.split(line)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def module_call(words: list[str]) -> tuple[str, list[str]] | None:
    """Returns (module, arguments) of a `python -m module arguments`, or of our command for it, else None."""
    if words[0].startswith("lewm-"):
        return {"lewm-gym": "lewm_gym"}.get(words[0], words[0].removeprefix("lewm-")), words[1:]
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[0] == "python" and words[1:2] == ["-m"]:
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


@pytest.mark.parametrize("page", CHECKED, ids=lambda page: page.stem)
def test_every_command_of_a_page_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page.read_text(encoding="utf-8")):
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
    """A folder in which the pages' commands about Two-Room have been run, smaller; the first run is also runs/demo."""
    folder = tmp_path_factory.mktemp("readme")
    ran = []
    for page in RUN:
        for block in blocks(page.read_text(encoding="utf-8"), "bash"):
            for words in commands(f"```bash\n{block.text}```"):
                call = module_call(words)
                if call is None or call in ran:
                    continue
                module, arguments = call
                name = f"{module} {arguments[0]}" if module == "benchmarks" else module
                if name in SMALLER and (name == "benchmarks report" or "two_room" in shlex.join(arguments)):
                    run(["-m", module, *arguments, *SMALLER[name]], folder)
                    ran.append(call)
    modules = {module for module, _ in ran}
    assert modules == {"collect", "agents", "benchmarks"}, f"the README should show every step on two_room: {ran}"
    shutil.copytree(folder / "runs/two_room-lewm-0", folder / "runs/demo")
    return folder


def test_commands_of_the_pages_lead_from_nothing_to_a_report(folder: Path) -> None:
    assert list(folder.rglob("*.html")), sorted(path.name for path in folder.rglob("*"))[:50]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page: Path, folder: Path) -> None:
    texts = []
    for block in blocks(page.read_text(encoding="utf-8"), "python"):
        text = block.text
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        compile("\n" * (block.line - 1) + text, str(page), "exec")  # a traceback then has the page's line numbers
        if block.run:
            texts.append((block.line, text))
    script = folder / f"{page.stem}_blocks.py"
    script.write_text(
        f"namespace = {{'__name__': 'page'}}\n"
        f"if __name__ == '__main__':\n"
        f"    for line, text in {texts!r}:\n"
        f"        exec(compile('\\n' * (line - 1) + text, {str(page)!r}, 'exec'), namespace)\n"
    )
    run([script.name], folder)
