"""The page in a real browser: nothing broken, nothing fetched, no complaint on the console."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import MACHINE, MADE, RECORDS, judged, save

from agents.random import RandomAgent
from benchmarks.evaluation import film
from benchmarks.evaluation.envs import Settings
from benchmarks.evaluation.evaluate import record as filmed
from benchmarks.report.build import write_report
from lewm_gym.pairs import load_shipped
from lewm_gym.results import Record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Without the background flags a browser asks for updates, which a closed network refuses many times a second.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
).split()
#: Counts what the browser could not show, once everything has loaded; appended to a copy of the page.
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
const broken = [...document.images].filter(i => !i.naturalWidth).length
  + [...document.querySelectorAll("video")].filter(v => v.error || !v.videoWidth).length;
const wide = document.documentElement.scrollWidth > innerWidth;
const fetched = performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length;
document.title = `broken ${broken} wide ${wide} fetched ${fetched}`;
}, 500))</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; on Debian: apt-get install chromium")
@pytest.mark.parametrize("width", [400, 1100])
def test_browser_shows_the_whole_page_without_complaint(tmp_path: Path, width: int) -> None:
    pairs = load_shipped("two_room", 25).pairs
    episodes = filmed(RandomAgent(2), "two_room", pairs, [0, 1], Settings(5))
    film.write_film(tmp_path / "f.mp4", episodes, "two_room")
    results = [save(tmp_path, f"{s}.json", judged(s, 9, 5, film="f.mp4" if s == 0 else None)) for s in (0, 1)]
    results.append(save(tmp_path, "far.json", judged(0, 5, 2, offset_steps=50, budget_steps=100)))
    for name, (record, _) in RECORDS.items():
        results.append(Record(name, record, MADE | {"hardware": MACHINE}).save(tmp_path / f"{name}.json").path)
    page = write_report(results, tmp_path / "page.html")
    page.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=4000", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None and title[1] == "broken 0 wide false fetched 0"
    assert "CONSOLE" not in done.stderr
