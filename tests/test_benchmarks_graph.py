"""The graph of imports: no circle anywhere, nothing by string outside the registries, few levels in benchmarks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("lewm_gym", "envs", "agents", "collect", "benchmarks")
LEVELS = 5  # of the modules of benchmarks: the longest chain of imports among them
#: Files that import modules of ours by a string: lists of names, each imported when it is asked for; packages, whose
#: names are imported lazily; and `python -m lewm_gym`, another name for the demo.
REGISTRIES = {"benchmarks/registry.py", "lewm_gym/tasks.py", "lewm_gym/__main__.py"}


def modules() -> dict[str, ast.Module]:
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Returns the modules that a module imports when it is imported, those for the type checker alone left out."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {target for target in found if target in known and target != name}


def graph() -> dict[str, set[str]]:
    trees = modules()
    edges = {name: imports(name, tree, set(trees)) for name, tree in trees.items()}
    # `from agents import lewm` imports the package, too; a package does not thereby depend on its modules.
    return {name: {t for t in targets if not name.startswith(f"{t}.")} for name, targets in edges.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Returns the chains of imports that come back to where they began."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for target in sorted(edges[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in edges:
        visit(name, [])
    return found


def test_no_chain_of_imports_comes_back_to_where_it_began() -> None:
    assert not circles(graph())
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]


def test_the_modules_of_benchmarks_stand_on_few_levels() -> None:
    edges = {name: {t for t in targets if t.startswith("benchmarks")} for name, targets in graph().items()}

    def level(name: str) -> int:
        return 1 + max(map(level, edges[name] - {"benchmarks"}), default=0)

    levels = {name: level(name) for name in edges if name.startswith("benchmarks.")}
    assert max(levels.values()) <= LEVELS, sorted(name for name, height in levels.items() if height > LEVELS)


def test_only_registries_import_modules_of_ours_by_a_string() -> None:
    ours = re.compile(rf"import_module\(f?\"({'|'.join(PACKAGES)})\\b")
    wrong = []
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if file.name != "__init__.py" and name not in REGISTRIES and ours.search(file.read_text(encoding="utf-8")):
            wrong.append(name)
    assert not wrong, "an import inside the function costs the same, and is seen by editors and type checkers"
