"""The arrows of docs/architecture.md: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "lewm_gym": set(),
    "envs": {"lewm_gym"},
    "agents": {"lewm_gym"},
    "collect": {"lewm_gym", "envs"},
    "benchmarks": {"lewm_gym", "agents", "collect"},
}
#: May reach every package, but only by name, with importlib, from inside a function.
REACH_LAZILY = {"lewm_gym/__init__.py", "lewm_gym/__main__.py"}


def _imported(tree: ast.AST) -> Iterator[tuple[str, int, bool]]:
    """Yields (module, line, whether it is importlib within a function) of every absolute import, however written."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lazy = {id(node) for f in ast.walk(tree) if isinstance(f, functions) for node in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or "", node.lineno, False
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            target = node.args[0]
            if isinstance(target, ast.JoinedStr):  # f"envs.{name}"
                target = target.values[0]
            if name in ("import_module", "__import__") and isinstance(target, ast.Constant):
                yield str(target.value), node.lineno, name == "import_module" and id(node) in lazy


def wrong_arrows(root: Path) -> list[str]:
    """Returns the imports under `root` that the table does not allow, as `file:line: imports module`."""
    wrong = []
    for package, allowed in MAY_IMPORT.items():
        for file in sorted((root / package).rglob("*.py")):
            name = file.relative_to(root).as_posix()
            for module, line, lazy in _imported(ast.parse(file.read_text(encoding="utf-8"))):
                target = module.split(".")[0]
                if target not in MAY_IMPORT or target == package or target in allowed:
                    continue
                if not (lazy and name in REACH_LAZILY):
                    wrong.append(f"{name}:{line}: imports {module}")
    return wrong


def test_no_import_points_against_the_layers() -> None:
    assert not wrong_arrows(ROOT), "see docs/architecture.md and MAY_IMPORT"


def test_every_package_is_in_the_table() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("envs/pusht/env.py", "import agents.lewm"),
        ("agents/lewm.py", "from envs.two_room import TwoRoomEnv"),
        ("agents/lewm.py", "def f():\n    from collect import collector"),
        ("lewm_gym/data/clips.py", "import importlib\ndef f():\n    return importlib.import_module('envs')"),
        ("benchmarks/evaluation/run.py", "from importlib import import_module\nimport_module(f'envs.{name}')"),
        ("collect/collector.py", "if TYPE_CHECKING:\n    import benchmarks"),
        ("lewm_gym/__main__.py", "import agents"),
        ("lewm_gym/__init__.py", "import importlib\nimportlib.import_module('agents.lewm')"),
    ],
)
def test_a_planted_wrong_arrow_is_caught(tmp_path: Path, file: str, source: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert len(wrong_arrows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("benchmarks/evaluation/run.py", "import agents\nfrom collect.policies import two_room\nimport lewm_gym"),
        ("collect/collector.py", "from envs import goal_env"),
        ("lewm_gym/__main__.py", "import importlib\ndef f():\n    importlib.import_module('agents.lewm')"),
    ],
)
def test_a_right_arrow_is_allowed(tmp_path: Path, file: str, source: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert not wrong_arrows(tmp_path)
