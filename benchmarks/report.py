"""The report: one self-contained HTML page and a Markdown file from the JSON files of measurements alone.

`python -m benchmarks report` and the demo both call `write_report`. What is shown is gathered here and in
`benchmarks.groups` and `benchmarks.record_sections`; how it looks is in `benchmarks.page` and `benchmarks.charts`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import page, paper, plots, record_sections, report_markdown
from benchmarks.groups import AGENT_TITLES, REFERENCES, Entry, Group, Kind, group_entries
from benchmarks.knowledge.section import plain, table
from lewm_gym.files import atomic_file, make_folder
from lewm_gym.results import Result, is_result

__all__ = ["AGENT_TITLES", "find_results", "write_report"]


def write_report(
    results: Sequence[str | Path],
    out: str | Path,
    film: str | Path | None = None,
    title: str = "LeWM-Gym report",
    intro: str | None = None,
) -> Path:
    """Writes the page to `out` and Markdown beside it (`.md`); returns the page's path.

    Args:
        results: Files of results and of other measurements; a film that a result names is embedded if it lies beside
            it, likewise the picture of a record.
        out: The page, HTML, self-contained.
        film: An mp4 to show, if no result names one.
        title: Heading.
        intro: A paragraph of plain text above the results, e.g. what was run.

    Raises:
        ValueError: Without results, for a file that is not a result of this schema, or a film that does not exist.
        OSError: If a file cannot be read or written.
    """
    if not results:
        raise ValueError("no results to report; make one with `python -m benchmarks plan RUN`")
    out = Path(out)
    if film is not None and not Path(film).is_file():
        raise ValueError(f"there is no film {film}")
    paths = [Path(path) for path in results]
    others = [path for path in paths if not is_result(path) and record_sections.is_record(path)]
    entries = _entries([path for path in paths if path not in others], Path(film) if film else None)
    groups = group_entries(entries)
    content = page.Content(
        title=title,
        intro=intro,
        groups=groups,
        overview=overview(groups),
        distances=plots.by_distance(groups),
        curves=plots.training_curves(entries),
        records=[record_sections.load(path, number) for number, path in enumerate(others, 1)],
    )
    _write(out, page.render(content))
    _write(out.with_suffix(".md"), report_markdown.render(content, out.parent))
    return out


def find_results(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the files to report among `paths`: files as they are, folders searched; other JSON there is skipped.

    Raises:
        ValueError: If a path does not exist, a file is damaged, or nothing is found.
    """
    found: list[Path] = []
    given = [Path(path) for path in paths]
    for path in given:
        if path.is_dir():
            files = sorted(path.rglob("*.json"))
            found += [file for file in files if is_result(file) or record_sections.is_record(file)]
        elif path.is_file():
            found.append(path)
        else:
            raise ValueError(f"there is no file or folder {path}")
    if not found:
        raise ValueError(
            f"no results in {', '.join(map(str, given))}; make one with `python -m benchmarks plan RUN --out FILE`"
        )
    return list(dict.fromkeys(found))


def overview(groups: Sequence[Group]) -> str:
    """Returns agents by tasks as a Markdown table, at the paper's distance, audited; empty without two numbers."""
    scenes = [group for group in groups if group.offset_steps == paper.OFFSET_STEPS]
    cells: dict[str, dict[str, Kind]] = {}
    for group in scenes:
        audited = [kind for kind in group.kinds() if kind.entries[0].result.protocol == "audited"]
        for kind in sorted(audited, key=page.weight):  # the last one stays: what was measured most
            if kind.agent != "random":  # has a row of its own: every result measures it on its pairs
                cells.setdefault(kind.entries[0].kind, {})[group.task] = kind
    if sum(map(len, cells.values())) < 2:
        return ""
    order = sorted(cells, key=lambda name: _rank(next(iter(cells[name].values())).agent))
    rows = [
        [f"**{plain(name)}**", *(_cell(cells[name].get(group.task), group.task) for group in scenes)] for name in order
    ]
    floor = [_floor(group) for group in scenes]
    if any(floor):
        rows.append(["random policy", *floor])
    return table(["agent", *(group.task_title for group in scenes)], rows)


def _rank(agent: str) -> tuple[bool, int]:
    names = list(AGENT_TITLES)
    return agent in REFERENCES, names.index(agent) if agent in names else len(names)


def _cell(kind: Kind | None, task: str) -> str:
    if kind is None:
        return ""
    std = f" ± {100 * kind.std:.1f}" if kind.std is not None else ""
    return f"**{100 * kind.mean:.1f}**{std}{_theirs(kind.agent, task)}{_minutes(kind)}"


def _minutes(kind: Kind) -> str:
    """Returns the mean time of training, or nothing where there was none."""
    seconds = [entry.result.run["seconds"] for entry in kind.entries if entry.result.run.get("seconds")]
    return f", {statistics.fmean(seconds) / 60:.2g} min" if seconds else ""


def _theirs(agent: str, task: str) -> str:
    """Returns the paper's number in italics, or nothing where it has none."""
    found = [row.success for row in paper.published(task) if (row.agent, row.block) == (agent, paper.BLOCKS[0])]
    return f" *({found[0]:g})*" if found else ""


def _floor(group: Group) -> str:
    rates = [entry.result.floor_success for entry in group.entries if entry.result.protocol == "audited"]
    most = max((rate for rate in rates if rate), key=lambda rate: rate.episodes, default=None)
    return f"{100 * most.rate:.1f}{_theirs('random', group.task)}" if most else ""


def _entries(paths: Sequence[Path], film: Path | None) -> list[Entry]:
    entries = []
    for number, path in enumerate(paths, 1):
        result = Result.load(path)
        own = path.parent / Path(result.film).name if result.film else None  # a name, never a way out of the folder
        if own is None or not own.is_file():
            own = film if number == 1 else None
        entries.append(Entry(f"result-{number}", path, result, own))
    return entries


def _write(path: Path, text: str) -> None:
    make_folder(path.parent)
    with atomic_file(path) as file:
        file.write(text.encode())
