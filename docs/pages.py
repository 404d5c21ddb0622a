"""Pages of the site that are made from the code and the stored results when it is built."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import html
import importlib
import io
import json
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from agents.lewm import LeWMAgent
from lewm_gym.results import wilson_interval
from lewm_gym.tasks import TASKS, Task

PROGRAMS = ("lewm_gym", "collect", "agents", "benchmarks")
COMMANDS = {"lewm_gym": "lewm-gym"} | {name: f"lewm-{name}" for name in PROGRAMS[1:]}


def write(folder: Path, results: Path) -> None:
    """Writes all generated pages into `folder`, afresh."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "cli.md").write_text(command_lines(), encoding="utf-8")
    for task in TASKS.values():
        (folder / f"{task.name}.part.md").write_text(task_facts(task), encoding="utf-8")
        (folder / f"{task.name}-success.part.md").write_text(task_successes(task, results), encoding="utf-8")
    (folder / "success.part.md").write_text(success_table(results), encoding="utf-8")
    (folder / "comparison.part.md").write_text(comparisons(results), encoding="utf-8")
    (folder / "goals.part.md").write_text(other_goals(results), encoding="utf-8")
    write_results(folder, results)


class _Parser(Exception):
    """Carries the parser that a program was about to use."""


def parser_of(program: str) -> argparse.ArgumentParser:
    """Returns the argument parser of `python -m program`."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        raise _Parser(parser)

    main = importlib.import_module(f"{program}.__main__").main
    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            main([])
        except _Parser as caught:
            found: argparse.ArgumentParser = caught.args[0]
            return found
    raise RuntimeError(f"python -m {program} parses no arguments")


def subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields the parsers of a parser's commands, each before those of its own."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield child
                yield from subcommands(child)


def command_parsers(program: str) -> Iterator[argparse.ArgumentParser]:
    """Yields the parsers of a program's commands that are made when they are called."""
    where = {"benchmarks": "benchmarks.registry", "agents": "agents.__main__", "collect": "collect.__main__"}
    if program in where:
        registry = importlib.import_module(where[program])
        for name in registry.COMMANDS:
            yield registry.load_command(name).parser(f"python -m {program} {name}")


def command_lines() -> str:
    """Returns the page of all commands and their options, as `--help` prints them."""
    lines = [
        "# Command line",
        "",
        "Made from the programs' own parsers. Each is also an installed command: "
        + ", ".join(f"`{COMMANDS[name]}`" for name in PROGRAMS)
        + ".",
    ]
    with mock.patch.dict("os.environ", {"COLUMNS": "88", "NO_COLOR": "1"}):
        for program in PROGRAMS:
            top = parser_of(program)
            lines += ["", f"## {COMMANDS[program]}", *_help(top)]
            for parser in (*subcommands(top), *command_parsers(program)):
                lines += ["", f"### {parser.prog.removeprefix('python -m ')}", *_help(parser)]
    return "\n".join([*lines, ""])


def _help(parser: argparse.ArgumentParser) -> list[str]:
    return ["", "```text", parser.format_help().rstrip(), "```"]


def task_facts(task: Task) -> str:
    """Returns a task's table of what the code says."""
    sensed = ", ".join(f"`{name}` ({size})" for name, size in task.proprioception.items())
    rows = [
        ("id", f"`{task.env_id}`"),
        ("observation", "`pixels` and `goal`, each (224, 224, 3) uint8"),
        ("proprioception (optional)", sensed),
        ("action", f"Box(-1, 1, ({task.action_size},)) float32"),
        ("state: `info['state']`", f"({task.state_size},) float64"),
        ("time limit", f"{task.max_episode_steps} steps"),
        ("reward", "-1 per step, 0 at success"),
        ("dataset", f"`python -m collect {task.name}`; the paper's size is {task.collect_episodes:,} episodes"),
        ("held-out pairs", f"200 each at {', '.join(map(str, task.goal_offsets))} steps from start to goal"),
        ("extra", f"`{task.extra}`" if task.extra else "none"),
    ]
    return "\n".join(["| property | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""])


def task_successes(task: Task, results: Path) -> str:
    """Returns a table of a task's stored successes."""
    lines = [
        "| result | planner | success | strict success | training |",
        "|---|---|---|---|---|",
        *successes(task, results),
        "",
        "Measured on 200 held-out pairs 25 steps apart; success rates with Wilson 95 % intervals; training time in "
        "minutes, CPU time with an actor and wall-clock time without.",
    ]
    return "\n".join([*lines, ""])


def evaluations(task: Task, results: Path) -> list[dict[str, Any]]:
    """Returns the stored evaluations of a task on all 200 held-out pairs 25 steps apart, the best first.

    Each as `name`, `agent`, `success`, `strict`, `random` (rates: `rate`, `low`, `high`), `minutes` of training or
    None, `suite` of pairs ("" for the task's own), and `planning`, its settings. Those of agents that were told the
    steps left are not among them.
    """
    found = []
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("task") != task.name or record.get("protocol") != "heldout" or record["offset_steps"] != 25:
            continue
        rates = record["rates"]
        success, random = rates["agent"]["success"], rates.get("random", {}).get("success")
        if success["episodes"] == 200 and "steps_left" not in record["metrics"]:
            seconds = record["run"]["description"].get("cpu_seconds") or record["run"].get("seconds")
            minutes = seconds / 60 if seconds else None
            found.append(
                {
                    "name": path.stem,
                    "agent": record["agent"],
                    "success": success,
                    "strict": rates["agent"].get("strict"),
                    "random": random,
                    "minutes": minutes,
                    "suite": record["pairs"]["source"].removeprefix("shipped").removeprefix(", "),
                    "planning": record["run"]["description"].get("planning") or {},
                }
            )
    return sorted(found, key=lambda record: (record["suite"], -record["success"]["rate"]))


def other_goals(results: Path) -> str:
    """Returns a table of the guided preset's success by distance and kind of goal: one run of each task."""
    columns = ["25", "50", "75", "100", "walk", "uniform"]
    lines = ["| | " + " | ".join(f"{c} steps" if c.isdigit() else f"`{c}`" for c in columns) + " |"]
    lines += ["|---|" + "---|" * len(columns)]
    for task in TASKS.values():
        recipe = LeWMAgent.preset("guided", task.name).planning.to_json()
        cells = dict.fromkeys(columns, "")
        for path in sorted(results.glob(f"{task.name}-lewm-*-seed0.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            sampled, agent = record["protocol"] == "sampled", record["rates"]["agent"]
            if record["run"]["description"].get("planning") != recipe or record["protocol"] == "official":
                continue
            cell = f"{_shown(agent['success'])}, strict {100 * agent['strict']['rate']:.1f}"
            column = record["pairs"]["source"] if sampled else str(record["offset_steps"])
            cells[column] = cell + (f", {record['budget_steps']} steps allowed" if column == "uniform" else "")
        lines.append(f"| {task.title} | {' | '.join(cells.values())} |")
    return "\n".join([*lines, ""])


def successes(task: Task, results: Path) -> list[str]:
    """Returns a row for each stored evaluation of a task, the best first, and the random baseline of each suite."""
    rows, random = [], {}
    for found in evaluations(task, results):
        minutes = f"{found['minutes']:.0f} min" if found["minutes"] else ""
        pairs = f" (`{found['suite']}` pairs)" if found["suite"] else ""
        random[pairs] = found["random"]
        cells = (f"`{found['name']}`{pairs}", found["planning"].get("planner", ""), _shown(found["success"]))
        rows.append(f"| {' | '.join((*cells, _shown(found['strict']), minutes))} |")
    return rows + [f"| random baseline{pairs} | | {_shown(rate)} | | |" for pairs, rate in random.items() if rate]


def _shown(rate: dict[str, float] | None) -> str:
    if not rate:
        return ""
    return f"{100 * rate['rate']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def comparisons(results: Path) -> str:
    """Returns a table of tasks and agents for each stored comparison of several seeds."""
    lines = []
    for path in sorted(results.glob("*/compare.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in record["rows"] if row["seeds"]]
        tasks = list(dict.fromkeys(row["task"] for row in rows))
        if any(seed["episodes"] != 200 for row in rows for seed in row["seeds"]):
            continue
        lines += ["", f"`{path.parent.name}`:", "", "| | " + " | ".join(TASKS[task].title for task in tasks) + " |"]
        lines += ["|---|" + "---|" * len(tasks)]
        for agent in dict.fromkeys(row["agent"] for row in rows):
            cells = {row["task"]: row["seeds"] for row in rows if row["agent"] == agent}
            lines.append(f"| {agent} | " + " | ".join(_over_seeds(cells.get(task, [])) for task in tasks) + " |")
        lines += ["", "```text", textwrap.fill(record["repeat"], 100, break_on_hyphens=False), "```"]
    return "\n".join([*lines, ""])


def _over_seeds(seeds: list[dict[str, Any]]) -> str:
    """Returns the mean of the seeds' rates, and the interval of all their pairs together."""
    if not seeds:
        return ""
    low, high = wilson_interval(sum(seed["successes"] for seed in seeds), sum(seed["episodes"] for seed in seeds))
    mean = sum(seed["rate"] for seed in seeds) / len(seeds)
    return _shown({"rate": mean, "low": low, "high": high})


def write_results(folder: Path, results: Path) -> None:
    """Writes the report of all stored results as a page of the site, `results.md`, and as the page that it is alone."""
    report = folder / "report.html"
    with contextlib.redirect_stdout(io.StringIO()):
        importlib.import_module("benchmarks.__main__").main(["report", str(results), "--out", str(report)])
    text = report.with_suffix(".md").read_text(encoding="utf-8")
    report.with_suffix(".md").unlink()
    # Films and files are on the report's own page.
    text = re.sub(r"(?<!\!)\[([^\]\n]*)\]\((?!https?:|#)[^)\n]*\)", r"\1", text)
    for name, page in result_pages(text).items():
        (folder / f"{name}.md").write_text(page, encoding="utf-8")


def result_pages(report: str) -> dict[str, str]:
    """Returns the report's Markdown as pages, by the names of their files: an overview, and one for each part.

    Of the measured goals of a task all distances are on one page; what made a number is folded.
    """
    overview, *parts = re.split(r"^## ", report, flags=re.MULTILINE)
    bodies: dict[str, list[str]] = {}
    for part in parts:
        heading, _, body = part.partition("\n")
        title, _, goals = heading.partition(", goals ")
        bodies.setdefault(title, []).append(f"## Goals {goals}\n{body}" if goals else _one_level_up(body))
    if made := bodies.get(PROVENANCE):
        bodies[PROVENANCE] = [re.sub(r"^## (.*)\n+((?:- .*\n)+)", _folded, made[0], flags=re.MULTILINE)]
    names = {title: "results-" + re.sub(r"\W+", "-", title.lower()) for title in bodies}
    pages = {names[title]: "\n".join([f"# {title}\n", *body]) for title, body in bodies.items()}
    contents = ["```{toctree}", ":maxdepth: 1", *pages, "```", ""]
    return {"results": re.sub(r"\A# .*\n", "# All measurements\n", overview) + "\n".join(contents)} | pages


def _folded(section: re.Match[str]) -> str:
    title = html.escape(re.sub(r"\\(.)", r"\1", section[1]))
    return f"<details><summary>{title}</summary>\n\n{section[2]}\n</details>\n"


def _one_level_up(markdown: str) -> str:
    return re.sub(r"^#(#+ )", r"\1", markdown, flags=re.MULTILINE)


#: Agents in the README's table, as they are called there.
AGENTS = {
    "lewm": "LeWM",
    "pldm": "PLDM",
    "gcbc": "GCBC",
    "gcivl": "GCIVL",
    "gciql": "GCIQL",
    "tdmpc2": "TD-MPC2 (needs rewards)",
    "dreamer": "Dreamer (needs rewards)",
}
#: Stored comparisons of ten minutes; the second, of the agents that need rewards.
COMPARISONS = ("compare", "compare-rewards")
#: Planners that begin with an actor's proposal.
ACTOR_PLANNERS = ("actor", "guided", "arcem", "fused")
#: The report's part that says how each number was made.
PROVENANCE = "Provenance"
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, results: Path) -> str:
    """Returns Markdown with its tables between `<!-- table: NAME -->` and `<!-- end -->` made anew from the results."""
    made = {"success": success_table, "speed": speed_table, "survival": survival_table, "fuzz": fuzz_table}
    return _TABLE.sub(lambda match: match[1] + made[match[2]](results) + match[3], text)


def success_table(results: Path) -> str:
    """Returns tasks x agents: LeWM's runs with and without an actor, and every agent of the ten-minute comparison."""
    paths = [results / folder / "compare.json" for folder in COMPARISONS]
    compared = [row for path in paths if path.exists() for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    lines = ["| | " + " | ".join(task.title for task in TASKS.values()) + " |", "|---|" + "---|" * len(TASKS)]
    runs = [[run for run in evaluations(task, results) if run["agent"] == "lewm"] for task in TASKS.values()]
    recipes = [LeWMAgent.preset("guided", task).planning.to_json() for task in TASKS]
    guided = [
        [run for run in of_task if run["planning"] == recipe] for of_task, recipe in zip(runs, recipes, strict=True)
    ]
    plain = [[run for run in of_task if run["planning"].get("planner") not in ACTOR_PLANNERS] for of_task in runs]
    for title, rows in (("LeWM with an actor, `--preset guided`", guided), ("LeWM without an actor, CEM", plain)):
        lines.append(f"| {title} | {' | '.join(map(_run_cell, rows))} |")
    random = [next((run["random"] for run in of_task if not run["suite"]), None) for of_task in runs]
    lines.append(f"| random baseline | {' | '.join(_shown(rate) for rate in random)} |")
    for agent, title in AGENTS.items():
        seeds = {row["task"]: row["seeds"] for row in compared if row["agent"] == agent}
        if not seeds:  # not measured
            continue
        cells = [_over_seeds(seeds.get(task, [])) for task in TASKS]
        lines.append(f"| {title}, 10 min, 3 seeds | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _run_cell(runs: list[dict[str, Any]]) -> str:
    """Returns the best run, with the runs that differ from it by their training's seed alone."""
    if not runs:
        return ""
    seeds = [run for run in runs if _recipe(run) == _recipe(runs[0])]
    pairs = f", on the `{runs[0]['suite']}` pairs" if runs[0]["suite"] else ""
    pairs += f" (random: {100 * runs[0]['random']['rate']:.1f} %)" if pairs else ""
    strict = [run["strict"]["rate"] for run in seeds if run["strict"]]
    cell = f"**{_over_seeds([run['success'] for run in seeds])}**"
    cell += f", strict {100 * sum(strict) / len(strict):.1f}" if strict else ""
    cell += f", {sum(run['minutes'] for run in seeds) / len(seeds):.0f} min"
    return cell + (f", {len(seeds)} seeds" if len(seeds) > 1 else "") + pairs


def _recipe(run: dict[str, Any]) -> tuple[str, str]:
    return re.sub(r"-seed\d+$", "", run["name"]), run["suite"]


def speed_table(results: Path) -> str:
    """Returns our speed and stable-worldmodel's, measured in turn in the same run."""
    lines = ["| `paper` model, two CPU cores | here | stable-worldmodel |", "|---|---|---|"]
    for name, what, unit in (
        ("speed-plan-paper", "a plan, CEM of 300 x 30", "s"),
        ("speed-train-paper", "training, clips of 4 frames", "/s"),
    ):
        figures = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["figures"]
        for precision in ("float32", "bf16"):
            cells = []
            for how in ("ours", "reference"):
                figure = next(f for f in figures if (f["how"], f["precision"]) == (how, precision))
                value = figure["seconds"] if unit == "s" else figure["per"] / figure["seconds"]
                cells.append(f"{value:.1f} {unit}" if unit == "s" else f"{value:.1f}{unit}")
            lines.append(f"| {what}, {precision} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def survival_table(results: Path) -> str:
    """Returns commands x faults: how many of each the commands survived when the suite last ran in full."""
    lines = (results / "survival.jsonl").read_text(encoding="utf-8").splitlines()
    counts: dict[str, Counter[str]] = {}
    for row in map(json.loads, lines):
        counts.setdefault(row["command"], Counter())[row["fault"]] += row["times"]
    faults = list(dict.fromkeys(json.loads(line)["fault"] for line in lines))
    table = [f"| | {' | '.join(faults)} |", "|---|" + "---|" * len(faults)]
    for command, found in counts.items():
        name, _, form = command.partition(", ")
        cells = [f"`{name}`" + (f", {form}" if form else ""), *(str(found[fault]) for fault in faults)]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([*table, ""])


def fuzz_table(results: Path) -> str:
    """Returns what was drawn x how it ended, of the last long run of the fuzzer."""
    counts: dict[str, Counter[str]] = {}
    for line in (results / "fuzz.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        drawn = "page of a record" if row["drawn"].startswith("page of ") else row["drawn"]
        counts.setdefault(drawn, Counter()).update(row["ends"])
    table = ["| | drawn | rejected in one line | read, or began to work | faults |", "|---|---|---|---|---|"]
    for drawn, ends in counts.items():
        good = ends.total() - ends["refused"] - ends["fault"]
        table.append(f"| {drawn} | {ends.total():,} | {ends['refused']:,} | {good:,} | {ends['fault']:,} |")
    return "\n".join([*table, ""])


#: Pages with tables that are made from the stored results.
WITH_TABLES = ("README.md", "docs/robustness.md")
#: Files that state the repository's address, taken from `url` in setup.cfg.
ADDRESSED = (
    "setup.cfg",
    "CITATION.cff",
    *(f"docs/tutorials/{name}.ipynb" for name in ("plan", "train", "your_environment")),
)


def with_address(text: str, old: str, new: str) -> str:
    """Returns a text with a GitHub repository's address replaced, and those of its site and in Colab."""
    (owner, name), (new_owner, new_name) = (address.rstrip("/").split("/")[-2:] for address in (old, new))
    for before, after in (
        (f"github.com/{owner}/{name}", f"github.com/{new_owner}/{new_name}"),
        (f"/github/{owner}/{name}/", f"/github/{new_owner}/{new_name}/"),
        (f"{owner}.github.io/{name}", f"{new_owner}.github.io/{new_name}"),
    ):
        text = text.replace(before, after)
    return text


if __name__ == "__main__":
    ROOT = Path(__file__).parent.parent
    parser = argparse.ArgumentParser(description="Makes the tables of README and pages anew from the stored results.")
    parser.add_argument("--repository", metavar="URL", help="also move to https://github.com/OWNER/NAME, in all files")
    asked = parser.parse_args()
    for page in (ROOT / name for name in WITH_TABLES):
        page.write_text(with_tables(page.read_text(encoding="utf-8"), ROOT / "results"), encoding="utf-8")
    if asked.repository:
        if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", asked.repository):
            parser.error(f"expected https://github.com/OWNER/NAME, got {asked.repository}")
        config = configparser.ConfigParser(interpolation=None)
        config.read(ROOT / "setup.cfg")
        for path in (ROOT / name for name in ADDRESSED):
            text = path.read_text(encoding="utf-8")
            path.write_text(with_address(text, config["metadata"]["url"], asked.repository), encoding="utf-8")
