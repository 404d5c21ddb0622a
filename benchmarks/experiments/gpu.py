"""Everything that only a GPU can tell, in short stages: `make gpu`.

Each stage is another command in a process of its own. A stage ends after `--stage-min` at the latest; one that resumes
(collecting, rendering, training and evaluation) goes on in its next turn, so that nothing is lost where a machine is
lent for minutes. What became of a stage is written to `<out>/stages/<name>.json`, and a stage that is done there is
left out. Without a GPU everything runs at toy size on the CPU.
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agents.devices import choose_device
from benchmarks.experiments.suite import Stage, collected
from benchmarks.options import OnDevice, OnTasks
from benchmarks.report.tables import duration
from lewm_gym import provenance
from lewm_gym.commands import option
from lewm_gym.files import read_json
from lewm_gym.results import Json, write_json
from lewm_gym.tasks import get_task

TESTS = Path(__file__).parents[2] / "tests"
BATCH_SIZES = (128, 256, 512)  # of the timed training step
ENVIRONMENTS = (1, 8, 64)  # planned for in one call
MOST_TURNS = 12  # of a stage that resumes
_GRACE_S = 30  # for a stage that was asked to end, to save what it has
_TAIL = 2000  # characters of a stage's output that its file keeps
_NO_TESTS = 5  # pytest's exit status where no test is marked so

#: Settings of LeWM that make a model of seconds, as words of `compare`.
_TOY = [
    f"lewm.{setting}"
    for setting in (
        "conv_channels=[8,8,8]", "encoder_width=16", "latent_size=8", "projection_width=16", "predictor_depth=1",
        "predictor_heads=2", "predictor_head_width=8", "predictor_mlp_width=16", "sigreg_directions=16", "batch_size=8",
        "recalibration_batches=1",
    )
]  # fmt: skip
Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Gpu(OnTasks, OnDevice):
    """Measures what only a GPU can show: its tests, rendering, training and planning speed, then training and success
    of the preset `paper` and of `guided` on each task. Runs in short stages, each with its JSON; the same command
    resumes. Without a GPU it runs at toy size on the CPU.
    """  # noqa: D205

    minutes: float = option(8.0, "of optimiser steps for each preset on each task", least=1e-6)
    episodes: int | None = option(None, "of each dataset that is not there yet (default: the task's for a laptop)")
    data: Path = option(Path("data"), "folder of datasets; <task>-states is rendered", metavar="FOLDER")
    runs: Path = option(Path("runs/gpu"), "run folders", metavar="FOLDER")
    out: Path = option(Path("results/gpu"), "folder for results, stages and report", metavar="FOLDER")
    stage_min: float = option(9.0, "longest turn of a stage (minutes)", least=0.01)
    call_min: float | None = option(
        None, "end after so many minutes, between or within stages; the same command resumes", least=0.01
    )
    toy: bool = option(False, "toy size, even where there is a GPU")
    dry_run: bool = option(False, "print the commands and how long they take, and stop")

    def __post_init__(self) -> None:
        super().__post_init__()
        device = choose_device(self.device)
        object.__setattr__(self, "device", device)
        object.__setattr__(self, "toy", self.toy or device == "cpu")

    def __call__(self) -> int:
        """Runs the stages; returns 0 where all are done."""
        return self.run(lambda text: print(text, flush=True))

    def run(self, say: Say) -> int:
        """Returns 0 if all stages are done, 1 if some failed, 3 if there was no time for some; `say` gets lines."""
        say(f"{'toy size, ' if self.toy else ''}on {self.device}: {self.cost()}")
        deadline = None if self.call_min is None else time.monotonic() + 60 * self.call_min
        states = []
        for stage in self.stages():
            state = self._known(stage)
            if self.dry_run:
                say(f"  {'done' if state == 'done' else '    '} {self._expected(stage):>14}  {stage.command}")
                continue
            if state != "done":
                state = self._do(stage, say, deadline)
            states.append((stage.name, state))
            if state == "no time":
                break
        failed = [name for name, state in states if state == "failed"]
        if failed:
            say(f"failed: {', '.join(failed)}; what they said is in {self.out / 'stages'}")
        if any(state == "no time" for _, state in states):
            say("the time of this call is over: run the same command again to resume")
            return 3
        return int(bool(failed))

    def cost(self) -> str:
        """Returns what it will take, as far as that can be told."""
        stages = list(self.stages())
        known = sum(stage.minutes or 0.0 for stage in stages)
        rest = sum(stage.minutes is None for stage in stages)
        return (
            f"{len(stages)} stages; about {duration(round(60 * known))} of rendering and optimiser steps, evaluation "
            f"besides, and {rest} stages of at most {self.stage_min:g} min each"
        )

    def _expected(self, stage: Stage) -> str:
        return f"at most {self.stage_min:g} min" if stage.minutes is None else f"about {stage.minutes:.3g} min"

    # The stages ----------------------------------------------------------------------------------------------

    def stages(self) -> Iterator[Stage]:
        """Yields the stages, in order."""
        if TESTS.is_dir() and importlib.util.find_spec("pytest"):
            words = ("pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(TESTS))
            yield Stage("tests", words, allowed=(0, _NO_TESTS))
        yield self._measuring(
            "speed-envs", "speed", "envs", "--seconds", self._sized("5", "0.1"), "--tasks", *self.tasks
        )
        for task in self.tasks:
            yield self._dataset(task)
        first = str(self.data / self.tasks[0])
        yield self._measuring("speed-data", "speed", "data", first, "--seconds", self._sized("3", "0.1"))
        repeats = ("--repeats", self._sized("5", "1"), "--device", str(self.device))
        repeats += (*(() if self.toy else ("--compiled",)), "--presets")  # compiling takes a CPU minutes
        presets = ("laptop",) if self.toy else ("laptop", "paper")
        for size in BATCH_SIZES[:1] if self.toy else BATCH_SIZES:
            words = ("--dataset", first, "--batch-size", self._sized(str(size), "8"), *repeats, *presets)
            yield self._measuring(f"speed-train-{size}", "speed", "train", *words)
        for preset in presets:
            few = ("--candidates", "8", "--iterations", "1") if self.toy else ()
            several = ("--n-envs", *map(str, ENVIRONMENTS[:2] if self.toy else ENVIRONMENTS))
            words = (*several, *few, *repeats, preset)
            yield self._measuring(f"speed-plan-{preset}", "speed", "plan", *words)
        for preset in ("paper", "guided"):
            for task in self.tasks:
                yield self._training(preset, task)
        out = str(self.out / "report.html")
        title = "LeWM-Gym on a GPU" if not self.toy else "LeWM-Gym, toy size"
        yield Stage("report", ("benchmarks", "report", str(self.out), "--out", out, "--title", title))

    def _sized(self, whole: str, toy: str) -> str:
        return toy if self.toy else whole

    def _measuring(self, name: str, *words: str) -> Stage:
        return Stage(name, ("benchmarks", *words, "--out", str(self.out / f"{name}.json")))

    def _dataset(self, name: str) -> Stage:
        """Returns what renders the states that are there, or collects the dataset."""
        task, folder = get_task(name), self.data / name
        states = folder.with_name(f"{name}-states")
        words: tuple[str, ...] = ("collect", "render", str(states), "--out", str(folder))
        if collected(states):
            count = collected(states)
        else:
            count = self.episodes or (6 if self.toy else task.laptop_episodes)
            count = max(count, collected(folder))
            words = ("collect", name, "--episodes", str(count), "--out", str(folder), "--no-pictures")
        return Stage(f"data-{name}", words, minutes=count * task.collect_seconds / 60, resumes=True)

    def _training(self, preset: str, task: str) -> Stage:
        """Returns the training of LeWM by a preset on a task, and its evaluation beside the references."""
        name = f"{preset}-{task}"
        words = ["benchmarks", "compare", str(self.data / task), "--agents", "lewm", "--seeds", "0"]
        words += ["--device", str(self.device), "--runs", str(self.runs / name), "--out", str(self.out / name)]
        if self.toy:
            actor = ["lewm.actor_steps=2"] if preset == "guided" else []
            size = "guided" if preset == "guided" else "laptop"
            words += ["--preset", size, "--steps", "2", "--n-pairs", "2", "--set", *_TOY, *actor]
            return Stage(name, tuple(words), resumes=True)
        words += ["--preset", preset, "--budget-min", f"{self.minutes:g}"]
        return Stage(name, tuple(words), minutes=self.minutes, resumes=True)

    # Running them --------------------------------------------------------------------------------------------

    def _path(self, stage: Stage) -> Path:
        return self.out / "stages" / f"{stage.name}.json"

    def _known(self, stage: Stage) -> str | None:
        """Returns how a stage ended, of the same command; None if that is not known."""
        path = self._path(stage)
        if not path.is_file():
            return None
        said = read_json(path, f"delete {path}, and the stage runs again")
        return said.get("state") if said.get("stage") == stage.command else None

    def _do(self, stage: Stage, say: Say, deadline: float | None) -> str:
        """Returns how a stage ended, "done", "failed" or "no time", and writes it down after each of its turns."""
        say(f"\n=== {stage.name}\n{stage.command}")
        began = time.monotonic()
        for turn in range(1, MOST_TURNS + 1):
            limit = 60 * self.stage_min
            if deadline is not None:
                limit = min(limit, deadline - time.monotonic())
            if limit <= 0:
                return "no time"
            cut_short = limit < 60 * self.stage_min
            status, tail = run_for(stage.words, limit)
            state = "done" if status in stage.allowed else "failed"
            if status is None:
                state = "no time" if cut_short else "stopped"
            said: Json = {"stage": stage.command, "state": state, "status": status, "turns": turn}
            said |= {"seconds": round(time.monotonic() - began, 1), "device": self.device, "toy": self.toy}
            write_json(self._path(stage), {**said, **provenance.describe(), "output": tail})
            say(f"--- {stage.name}: {state}, {duration(round(time.monotonic() - began))}")
            if state != "stopped":
                return state
            if not stage.resumes:
                break
        return "failed"


def run_for(words: tuple[str, ...], seconds: float) -> tuple[int | None, str]:
    """Runs `python -m` with these words; returns its status, None if its time was over, and the end of its output."""
    command = [sys.executable, "-m", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    try:
        try:
            output, status = process.communicate(timeout=seconds)[0], process.returncode
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # commands save what they have, and end
            status = None
            try:
                output = process.communicate(timeout=_GRACE_S)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                output = process.communicate()[0]
    except BaseException:  # Ctrl-C has reached it, too
        process.terminate()
        process.wait(_GRACE_S)
        raise
    return status, output[-_TAIL:]
