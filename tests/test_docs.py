"""The documentation: what its generated parts say, where its links lead, and that its numbers are the stored ones."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import lewm_gym
from lewm_gym.tasks import TASKS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "results"
WRITTEN = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
WRITTEN += [path for path in sorted(DOCS.rglob("*.md")) if not {"_build", "generated"} & set(path.parts)]


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short_and_its_tables_are_made_from_the_results(pages: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert text == pages.with_tables(text, RESULTS), "python docs/pages.py makes them anew"


def test_every_table_of_results_is_made_from_them(pages: ModuleType) -> None:
    for page in (ROOT / name for name in pages.WITH_TABLES):
        text = page.read_text(encoding="utf-8")
        assert "<!-- table: " in text and text == pages.with_tables(text, RESULTS), page
    marked = {page.relative_to(ROOT).as_posix() for page in WRITTEN if "<!-- table: " in page.read_text("utf-8")}
    assert marked == set(pages.WITH_TABLES)


def test_a_changed_number_in_the_readme_would_be_found(pages: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rate = re.search(r"\*\*(\d+\.\d) %", text)
    assert rate is not None
    changed = text.replace(rate[0], "**12.3 %", 1)
    assert changed != pages.with_tables(changed, RESULTS)


#: Numbers that come from measurements: percentages, durations, rates, ratios and intervals.
MEASURED = re.compile(
    r"\d ?%(?!\w)|\d(\.\d+)?x\b|\d times\b|\d (ms|us|min|minutes|hours|h)\b|\d\.\d+ s\b"
    r"|\d ?(clips|frames|steps|episodes|plans)?/s\b|\[\d+\.\d+, \d+\.\d+\]"
)


def unmarked(text: str) -> list[str]:
    """Returns the paragraphs and tables with measured numbers that are neither generated nor marked with a source."""
    text = re.sub(r"<!-- table: .*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```|^    [^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"95 % (confidence )?interval", "interval", text)
    return [block for block in text.split("\n\n") if MEASURED.search(block) and "<!-- fact: " not in block]


NOT_DEFINITIONS = [page for page in WRITTEN if page.parent.name != "tasks"]  # whose numbers define the environments


@pytest.mark.parametrize("page", NOT_DEFINITIONS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_measured_numbers_are_generated_or_have_a_source(page: Path) -> None:
    assert not unmarked(page.read_text(encoding="utf-8")), "take them from a stored result, or mark their source"


@pytest.mark.parametrize("number", ["75.0 %", "in 13 ms", "3.3x", "48 times", "1,067 clips/s", "12.3 s", "[1.0, 2.5]"])
def test_a_measured_number_in_prose_would_be_found(number: str) -> None:
    assert unmarked(f"With a Wilson 95 % interval.\n\nHere it is {number} or so.") == [f"Here it is {number} or so."]
    assert not unmarked(f"<!-- fact: published, arXiv 2603.19312 -->\nThere it is {number} or so.")


def anchors(page: Path) -> set[str]:
    """Returns the names under which a page's headings can be linked."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if link.startswith(("https://", "http://", "../../actions/")) or "generated/" in link:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {link}"


def test_every_command_is_on_the_page_of_command_lines(pages: ModuleType) -> None:
    text = pages.command_lines()
    for heading in (
        "## lewm-gym",
        "## lewm-agents",
        "### agents ship",
        "### collect import",
        "### collect two_room",
        "### benchmarks plan",
    ):
        assert f"{heading}\n" in text
    assert "--dataset" not in pages.parser_of("collect").format_help()


def test_every_task_has_its_page_of_facts(pages: ModuleType) -> None:
    for task in TASKS.values():
        facts = pages.task_facts(task)
        assert "random baseline" in pages.task_successes(task, RESULTS)
        assert f"`{task.env_id}`" in facts and f"({task.state_size},) float64" in facts
        assert f"../generated/{task.name}.part.md" in (DOCS / "tasks" / f"{task.name}.md").read_text(encoding="utf-8")


def test_a_result_on_fewer_pairs_is_not_shown_among_those_on_200(pages: ModuleType) -> None:
    names = {run["name"] for run in pages.evaluations(TASKS["two_room"], RESULTS)}
    assert "two_room-lewm-laptop-seed0" in names
    assert "two_room-demo-seed0-100pairs" not in names


def test_no_code_on_a_page_is_wider_than_a_screen() -> None:
    for page in WRITTEN:
        code = re.findall(r"^```(?:bash|python).*?^```|^ {4}[^\n]*$", page.read_text(encoding="utf-8"), re.M | re.S)
        wide = [line for block in code for line in block.splitlines() if len(line) > 104]
        assert not wide, f"{page.name}: break the line, or move its comment into the text: {wide}"


def test_every_picture_has_an_alternative_text() -> None:
    for page in WRITTEN:
        assert "![](" not in page.read_text(encoding="utf-8"), page.name


def test_the_report_becomes_one_page_per_part_with_folded_provenance(pages: ModuleType) -> None:
    parts = (
        "## Push-T, goals 25 steps away\n\na\n\n## Push-T, goals 50 steps away\n\nb\n\n## Speed\n\n### Loading\n\nc\n\n"
    )
    made = "## Provenance\n\n### LeWM \\[<1>\\]: x.json\n\n- seed: 0\n- commit: f\n\n"
    found = pages.result_pages(f"# Report\n\nAbout.\n\n{parts}{made}")
    assert list(found) == ["results", "results-push-t", "results-speed", "results-provenance"]
    assert all(name in found["results"] for name in list(found)[1:])
    assert re.findall(r"^## .*", found["results-push-t"], re.MULTILINE) == [
        "## Goals 25 steps away",
        "## Goals 50 steps away",
    ]
    assert "\n## Loading\n" in found["results-speed"]
    assert (
        "<details><summary>LeWM [&lt;1&gt;]: x.json</summary>\n\n- seed: 0\n- commit: f\n"
        in found["results-provenance"]
    )


def test_the_address_of_the_repository_can_be_moved_by_one_command(pages: ModuleType) -> None:
    old = re.search(r"^url = (\S+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)
    assert old is not None
    owner_and_name = "/".join(old[1].split("/")[-2:])
    for name in pages.ADDRESSED:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert owner_and_name in text
        moved = pages.with_address(text, old[1], "https://github.com/someone/elsewhere")
        assert owner_and_name not in moved and "github.io/lewm-gym" not in moved
    kept = [path for path in [*WRITTEN, *DOCS.glob("*.py")] if owner_and_name in path.read_text(encoding="utf-8")]
    assert not kept, "use a relative link"


def test_versions_and_addresses_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {lewm_gym.__version__}\n" in citation
    repository = re.search(r"^url = (\S+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), re.MULTILINE)
    assert repository is not None
    assert f"repository-code: {repository[1]}\n" in citation
    for notebook in (DOCS / "tutorials").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        colab = repository[1].replace("https://github.com/", "https://colab.research.google.com/github/")
        assert f"{colab}/blob/main/docs/tutorials/{notebook.name}" in text


def test_the_moving_picture_is_small_and_moves() -> None:
    from PIL import Image

    path = DOCS / "images" / "tasks.webp"
    assert path.stat().st_size < 3e6
    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) > 30
