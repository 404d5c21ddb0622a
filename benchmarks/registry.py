"""The one list of commands. The command line, the records that commands leave and the page iterate `COMMANDS`.

To add a measurement: write one file with a `Measurement` (`benchmarks/report/records.py`), and add a line here.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

SUCCESS, COMPARISON = "Success", "Comparison"
LATENCY, SPEED = "Success against latency", "Latency and throughput"
KNOWLEDGE, ROBUSTNESS, ABLATIONS = "Latent analysis", "Robustness", "Ablations"
#: Parts of the page that show records, in its order.
PARTS = (COMPARISON, LATENCY, SPEED, KNOWLEDGE, ROBUSTNESS, ABLATIONS)


class Entry(NamedTuple):
    """A command.

    Attributes:
        path: `module:class` of the `Command`, below `benchmarks`; imported when it is called.
        text: What it does, in a line of `--help`.
        part: Part of the page that shows its records, of kind `<name of the command>`; None if it leaves none.
    """

    path: str
    text: str
    part: str | None = None


COMMANDS: dict[str, Entry] = {
    "demo": Entry("demo:Demo", "collect, train, evaluate and film an agent on Two-Room"),
    "watch": Entry("evaluation.watch:Watch", "film a pretrained agent, or the agent of a run"),
    "plan": Entry("evaluation.run:Plan", "measure planning success", SUCCESS),
    "compare": Entry("experiments.compare:Compare", "train, evaluate and tabulate agents side by side", COMPARISON),
    "suite": Entry("experiments.suite:Suite", "collect, train, measure and report in one command"),
    "gpu": Entry("experiments.gpu:Gpu", "measure what only a GPU can show, in short stages that resume"),
    "bundle": Entry("experiments.bundle:Bundle", "pack what `gpu` needs on a machine without a network"),
    "tradeoff": Entry("experiments.search:Tradeoff", "measure success against latency", LATENCY),
    "equal-flops": Entry("experiments.search:EqualFlops", "measure success at equal operations per plan", LATENCY),
    "precision": Entry("experiments.search:Precision", "measure planning in bf16 against float32"),
    "compare-results": Entry("experiments.search:CompareResults", "compare two results on the same pairs"),
    "shift": Entry("experiments.robustness:Shift", "measure success under changed colours, sizes, light", ROBUSTNESS),
    "ablate": Entry("experiments.sweep:Ablate", "train and measure the paper's ablations", ABLATIONS),
    "tune-lambda": Entry("experiments.sweep:TuneLambda", "find SIGReg's weight by bisection", ABLATIONS),
    "elites": Entry("analysis.elites:Elites", "compare predicted and real cost of a search's elites", KNOWLEDGE),
    "probe": Entry("analysis.probe:Probe", "probe frozen latents for physical quantities", KNOWLEDGE),
    "surprise": Entry("analysis.surprise:Surprise", "measure violation of expectation", KNOWLEDGE),
    "rollout": Entry("analysis.rollout:Rollout", "measure open-loop prediction error by horizon", KNOWLEDGE),
    "decode": Entry("analysis.decode:Decode", "decode rollouts and plans to images", KNOWLEDGE),
    "tsne": Entry("analysis.latent_map:LatentMap", "show a t-SNE map of the latents of a grid of positions", KNOWLEDGE),
    "straightness": Entry("analysis.curves:Straightness", "plot the straightness of latent paths", KNOWLEDGE),
    "curves": Entry("analysis.curves:Curves", "plot the losses over training", KNOWLEDGE),
    "speed envs": Entry("speed.envs:Envs", "time stepping and rendering each task", SPEED),
    "speed data": Entry("speed.data:Data", "time loading training clips from datasets", SPEED),
    "speed train": Entry("speed.train:Train", "time a training step of LeWM", SPEED),
    "speed plan": Entry("speed.plan:PlanSpeed", "time a plan, by agent, planner, precision and environments", SPEED),
    "report": Entry("report.build:Report", "render results as one page"),
}


def load_command(name: str) -> Any:
    """Returns the class of the command called `name`."""
    module, _, command = COMMANDS[name].path.partition(":")
    return getattr(importlib.import_module(f"benchmarks.{module}"), command)
