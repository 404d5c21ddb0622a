"""The report: one self-contained HTML page and a Markdown file, from the JSON files of measurements alone.

What is shown of results is gathered in `benchmarks.report.results`, of other records by the command that makes them;
the page itself is `page.html.j2`, the Markdown file `page.md.j2`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe

from benchmarks.registry import COMMANDS, PARTS, SPEED
from benchmarks.report import published, results
from benchmarks.report.plots import bars
from benchmarks.report.records import naming, section_of
from benchmarks.report.results import WINDOW, Entry, Group, group_entries
from benchmarks.report.tables import Mark, Section, Table, data_uri, duration, link, to_html, to_markdown
from lewm_gym.commands import Command, argument, option
from lewm_gym.files import atomic_file, make_folder, remove_stale
from lewm_gym.plots import figure_of
from lewm_gym.results import Record, Result, is_record, part_of
from lewm_gym.tasks import TASKS

#: Facts that are set in a fixed-width face.
CODE = ("command", "training command", "commit", "training commit", "pairs", "dataset", "weights")
Facts = list[tuple[str, str]]


class Shown(NamedTuple):
    """A record, not of success, with its file, its place on the page and what is shown of it."""

    anchor: str
    path: Path
    record: Record
    section: Section

    def markdown(self, folder: Path) -> str:
        """Returns it for Markdown in a folder."""
        with naming(self.record):
            return self.section.markdown(folder, self.path.with_suffix(".png"))

    def html(self) -> str:
        """Returns it for the page."""
        with naming(self.record):
            return self.section.html()

    def facts(self) -> Facts:
        """Returns what made it."""
        with naming(self.record):
            return facts_of_record(self.record)


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Renders records as one self-contained HTML page and a Markdown file: success with Wilson 95 % intervals and
    published numbers, all other measurements, training curves, films, and the provenance of each number.
    """  # noqa: D205

    results: tuple[Path, ...] = argument("JSON files, or folders with JSON files")
    out: Path | None = option(None, "HTML page; Markdown is written beside it (default: <folder>/report.html)")
    title: str = option("LeWM-Gym report", "title of the page", metavar="TEXT")

    def __call__(self) -> int:
        """Writes the page."""
        paths, first = find_records(self.results), self.results[0]
        page = write_report(paths, self.out or (first if first.is_dir() else first.parent) / "report.html", self.title)
        print(f"{len(paths)} {'record' if len(paths) == 1 else 'records'} -> {page} and {page.with_suffix('.md')}")
        return 0


def find_records(paths: Iterable[str | Path]) -> list[Path]:
    """Returns the files to report among `paths`: files as they are, folders searched; other JSON there is skipped.

    Raises:
        ValueError: If a path does not exist, a file is damaged, or nothing is found.
    """
    found: list[Path] = []
    given = [Path(path) for path in paths]
    for path in given:
        if not path.exists():
            raise ValueError(f"there is no file or folder {path}")
        found += [file for file in sorted(path.rglob("*.json")) if is_record(file)] if path.is_dir() else [path]
    if not found:
        where = ", ".join(map(str, given))
        raise ValueError(f"no results in {where}; make one with `python -m benchmarks plan RUN --out FILE`")
    return list(dict.fromkeys(found))


def write_report(
    paths: Sequence[str | Path],
    out: str | Path,
    title: str = "LeWM-Gym report",
    intro: str = "",
    film: Path | None = None,
) -> Path:
    """Writes the page to `out` and Markdown beside it (`.md`); returns the page's path.

    Args:
        paths: Files of records; films and pictures that they name are embedded if they lie beside them.
        out: The page, HTML, self-contained.
        title: Heading.
        intro: A paragraph of plain text above the results, e.g. what was run.
        film: An mp4 to show with the first result, if that names none.

    Raises:
        ValueError: Without records, for a file that is none of this schema, or a film that does not exist.
        OSError: If a file cannot be read or written.
    """
    if not paths:
        raise ValueError("no results to report; make one with `python -m benchmarks plan RUN`")
    if film is not None and not film.is_file():
        raise ValueError(f"there is no film {film}")
    out = Path(out)
    records = {Path(path): Record.load(path) for path in paths}
    measured = [(path, record) for path, record in records.items() if record.kind == "plan"]
    groups = group_entries(
        [_entry(path, record, n, film if n == 1 else None) for n, (path, record) in enumerate(measured, 1)]
    )
    others = [(path, record) for path, record in records.items() if record.kind != "plan"]
    shown = [Shown(f"record-{n}", path, record, section_of(record)) for n, (path, record) in enumerate(others, 1)]
    content = _content(groups, shown) | {"title": title, "intro": intro}
    environment = jinja2.Environment(loader=jinja2.PackageLoader("benchmarks.report", ""), trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # fmt: skip
    environment.filters |= {
        "plain": to_markdown,
        "data_uri": data_uri,
        "link": lambda path: link(path, out.parent),
        "md": lambda section: section.markdown(out.parent),
        "shown": lambda one: one.markdown(out.parent),
        "drawn": lambda one: markupsafe.Markup(one.html()),
        "cell": lambda cell: markupsafe.Markup(to_html(cell)),
        "section": lambda section: markupsafe.Markup(section.html()),
    }
    make_folder(out.parent)
    for path, name, escaped in ((out, "page.html.j2", True), (out.with_suffix(".md"), "page.md.j2", False)):
        remove_stale(path)
        with atomic_file(path) as file:
            file.write(environment.overlay(autoescape=escaped).get_template(name).render(content).encode())
    return out


def _entry(path: Path, record: Record, number: int, film: Path | None) -> Entry:
    result = Result.of(record)
    own = path.parent / Path(result.film).name if result.film else None  # a name, never a way out of the folder
    return Entry(f"result-{number}", path, result, own if own is not None and own.is_file() else film)


def _content(groups: Sequence[Group], shown: Sequence[Shown]) -> dict[str, Any]:
    """Returns what the templates show."""
    entries = [entry for group in groups for entry in group.entries]
    distances = results.distance_panels(groups)
    parts = {part: [one for one in shown if COMMANDS[one.record.kind].part == part] for part in PARTS}
    return {
        "groups": [(group.title, success_section(group), published_sections(group)) for group in groups],
        "cards": [card(group) for group in groups if group.main_kind()],
        "overview": Section("", [table]) if (table := results.overview(groups)) else None,
        "offset": published.offset_steps(),
        "films": [(f"{group.title}: {entry.title}", entry, TASKS[group.task].film_note if group.task in TASKS else "")
                  for group in groups for entry in group.entries if entry.film],
        "distances": Section("", [figure_of("Success against distance.", distances)]) if distances else None,
        "parts": [(part, mine, _latencies() if part == SPEED else None) for part, mine in parts.items() if mine],
        "training": [(name, Section("", [figure_of("", panels)])) for name, panels in results.training_panels(entries)],
        "window": WINDOW,
        "facts": [(one.anchor, f"{one.title}: {one.result.success}", one.path.name, facts_of_result(one), one.film)
                  for one in entries]
        + [(one.anchor, one.section.title, one.path.name, one.facts(), None) for one in shown],
        "code": CODE,
    }  # fmt: skip


def success_section(group: Group) -> Section:
    """Returns what was measured of a group."""
    rows = group.measured()
    return Section(group.title, [bars("Success, with Wilson 95 % intervals.", rows), results.success_table(rows)])


def published_sections(group: Group) -> list[Section]:
    """Returns what others report, a section for each block; the first has the drawing of all."""
    blocks = group.published()
    sections: list[Section] = []
    drawn = [results.Bar(row.label, row.success / 100, None, "theirs") for rows in blocks.values() for row in rows]
    figures = [bars("Published, not measured here, in the order of the tables.", drawn)]
    for heading, rows in blocks.items():
        common = [one.pop() for one in ({row.source for row in rows}, {row.protocol for row in rows}) if len(one) == 1]
        title = "; ".join([f"{heading} (published, not measured here)", *common])
        sections.append(Section(title, [*figures[len(sections) :], results.published_table(rows)]))
    return sections


def _latencies() -> Section:
    known = published.data()["latency"]
    rows: list[list[Any]] = [[Mark(row["method"], "theirs"), row["hardware"], row["source"], f"{row['seconds']:g} s"]
                             for row in known["rows"]]  # fmt: skip
    return Section("Published", [known["text"], Table(["method", "hardware", "source", "a plan"], rows, words=3)])


def card(group: Group) -> dict[str, Any]:
    """Returns the main result of a group, in words."""
    kind = group.main_kind()
    assert kind is not None
    found = [entry.result for entry in kind.entries]
    success, number = found[0].success, "these numbers" if len(found) > 1 else "this number"
    pairs = f"{success.episodes} {'held-out goals' if kind.is_heldout else 'goals'}"
    if kind.std is None:
        met = f"reached {success.successes} of {pairs}; "
        met += f"95 % interval {100 * success.low:.1f} to {100 * success.high:.1f} %."
    else:
        each = ", ".join(f"{100 * result.success.rate:.1f}" for result in found)
        met = f"reached on average {100 * kind.mean:.1f} % of {pairs} over {len(found)} training seeds ({each})."
    if "strict" in kind.means:
        met += f" It held {100 * kind.means['strict']:.1f} % for 5 steps."
    random = found[0].rates().get("random", {}).get("success")
    return {"heading": group.title, "kind": kind, "met": met, "random": random, "number": number}


# Provenance ---------------------------------------------------------------------------------------


def facts_of_result(entry: Entry) -> Facts:
    """Returns what made a result as (name, text), what is unknown left out."""
    result, description = entry.result, entry.description
    run, rates, pairs = result.run, result.rates(), result.pairs
    per_plan = result.timing.get("seconds_per_plan")
    strict, replay = rates["agent"].get("strict"), rates.get("replay", {}).get("success")
    where = f"{result.offset_steps} steps apart" if result.offset_steps else "goals sampled uniformly"
    data = [form.format(entry.dataset[name]) for name, form in _DATASET if entry.dataset.get(name) is not None]
    head = Record("plan", {}, {name: getattr(result, name) for name in ("command", "commit", "hardware", "versions")})
    values = facts_of_record(head) + [
        ("seed", f"{result.seed} (evaluation)"),
        ("protocol", f"{result.protocol}, {where}, budget {result.budget_steps} steps"),
        ("pairs", f"{pairs.get('source')}, first {result.success.episodes} of {pairs.get('count')}, "
                  f"hash {str(pairs.get('hash'))[:16]}"),
        ("strict success", f"{strict}, held for 5 steps" if strict else "not judged"),
        ("action replay", f"{replay}, the recorded actions on the same pairs" if replay else ""),
        ("time", f"{duration(result.seconds)}{f', {per_plan:.3g} s per plan' if per_plan else ''}, "
                 f"begun {result.started}"),
        ("training", _training(description, run)),
        ("training command", description.get("command")),
        ("training commit", _commit(description["commit"]) if "commit" in description else ""),
        ("training hardware", _hardware(description.get("hardware"))),
        ("dataset", ", ".join(data)),
        ("weights", str(run.get("weights") or "")[:16]),
        ("result file", entry.path.name),
    ]  # fmt: skip
    return [(name, str(text)) for name, text in values if text]


_DATASET = (("folder", "{}"), ("episodes", "{} episodes"), ("frames", "{} frames"), ("hash", "hash {:.16}"))


def facts_of_record(record: Record) -> Facts:
    """Returns the same of any other record."""
    head = record.head
    took = duration(head["seconds"]) if isinstance(head.get("seconds"), int | float) else ""
    begun = f"begun {head['started']}" if head.get("started") else ""
    versions = head.get("versions") or {}
    values = [
        ("command", head.get("command")),
        ("commit", _commit(head["commit"]) if "commit" in head else ""),
        ("seed", record.get("seed", "")),
        ("hardware", _hardware(head.get("hardware"))),
        ("device", record.get("device")),
        ("time", ", ".join(filter(None, (took, begun)))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("result file", record.path.name if record.path else ""),
    ]
    return [(name, str(text)) for name, text in values if text not in (None, "")]


def _commit(commit: Any) -> str:
    if not isinstance(commit, dict) or not commit.get("hash"):
        return "not in a git checkout"
    return str(commit["hash"])[:12] + (" with uncommitted changes" if commit.get("dirty") else "")


def _hardware(machine: Any) -> str:
    if not isinstance(machine, Mapping):
        return ""
    memory = f", {machine['memory_gib']} GiB" if machine.get("memory_gib") else ""
    gpu = machine.get("gpu") or "no GPU"
    return f"{machine.get('cores')} cores of {machine.get('cpu')}{memory}, {gpu}, {machine.get('system')}"


def _training(description: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    training = part_of(description, "training")
    steps = run.get("steps") or training.get("steps")
    seconds = description.get("training_seconds") or run.get("seconds")
    clips = f" of {training['batch_size']} clips" if training.get("batch_size") else ""
    parts = [
        f"preset {description['preset']}" if description.get("preset") else "",
        f"seed {training['seed']}" if "seed" in training else "",
        f"{steps} steps{clips}" if steps else "",
        duration(seconds) if isinstance(seconds, int | float) else "",
    ]
    return ", ".join(filter(None, parts))
