"""The command line of what models know: `probe`, `surprise`, `rollout`, `decode`, `tsne`, `straightness`, `curves`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.knowledge.records import Json, record_path
from benchmarks.knowledge.sections import FORMATS
from lewm_gym import cli
from lewm_gym.progress import Bars

Measure = Callable[[argparse.Namespace, Any], Json]


def add_commands(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds the verbs."""
    probe = _add(
        commands, "probe", _probe, "measure how well physical quantities can be read off frozen latents", PROBE
    )
    _add_runs(probe, several=True, dataset=True)
    _add_count(probe, "--fit-episodes", 200, "episodes to fit probes on, at most")
    _add_count(probe, "--episodes", 50, "episodes to judge them on, at most")
    _add_count(probe, "--steps", 1500, "optimiser steps of an MLP probe")
    probe.add_argument("--control", action="store_true", help="probe the first run's network with random weights too")

    surprise = _add(commands, "surprise", _surprise, "measure surprise at colour changes and teleports", SURPRISE)
    _add_runs(surprise, several=True)
    _add_count(surprise, "--trajectories", 50, "trajectories, of three variants each")

    rollout = _add(
        commands, "rollout", _rollout, "measure the error of open-loop predictions against the horizon", ROLLOUT
    )
    _add_runs(rollout, several=True, dataset=True)
    _add_count(rollout, "--horizon", 10, "blocks of actions to look ahead")
    _add_count(rollout, "--episodes", 50, "held-out episodes, at most")

    decode = _add(commands, "decode", _decode, "draw what a model imagines and plans", DECODE)
    _add_runs(decode, dataset=True)
    _add_count(decode, "--steps", 1000, "optimiser steps of the decoder")
    _add_count(decode, "--frames", 3000, "frames that it learns from, at most")
    _add_count(decode, "--episodes", 3, "rollouts and plans to draw")
    _add_count(decode, "--horizon", 8, "blocks of actions that a rollout looks ahead")

    tsne = _add(commands, "tsne", _tsne, "map the latents of a grid of positions", TSNE)
    _add_runs(tsne)
    _add_count(tsne, "--side", 10, "cells along a side of the grid")

    for name, what in (
        ("straightness", "the straightness of latent paths over training"),
        ("curves", "the losses over training"),
    ):
        picture = _add(commands, name, _from_logs, f"draw {what}", LOGS)
        _add_runs(picture, several=True, device=False)


PROBE = (
    "Fits linear and MLP probes from frozen latents to each physical quantity of the task and judges them on episodes "
    "that no run was trained on: squared error and Pearson's r, beside the paper's."
)
SURPRISE = (
    "Makes trajectories in the simulator (Two-Room, Push-T, Cube), unperturbed, with a change of colour and with a "
    "teleport, and compares the errors of the predicted latents by a paired t-test."
)
ROLLOUT = "Predicts held-out episodes open loop and compares the error with that of the last frame, copied."
DECODE = (
    "Trains a decoder on frozen latents, for looking only, and draws open-loop rollouts beside what happened and plans "
    "beside what came of them. The same command resumes."
)
TSNE = "Draws a grid of positions, encodes it and lays the latents out in the plane, coloured by position."
LOGS = "Reads the logs of run folders; runs of several agents stand beside one another."


def _add(
    commands: argparse._SubParsersAction[cli.Parser], name: str, measure: Measure, text: str, description: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"{description} Writes JSON and a picture beside it.")
    parser.set_defaults(command=_run, verb=name, measure=measure)
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"record, JSON (default: results/{name}-<run>.json)")
    return parser


def _add_runs(
    parser: argparse.ArgumentParser, several: bool = False, dataset: bool = False, device: bool = True
) -> None:
    parser.add_argument("runs", type=Path, nargs="+" if several else 1, metavar="RUN", help="run folder")
    if dataset:
        parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder that `python -m collect` wrote")
    if device:
        parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")


def _add_count(parser: argparse.ArgumentParser, name: str, default: int, text: str) -> None:
    parser.add_argument(name, type=_count, default=default, metavar="N", help=f"{text} (default: %(default)s)")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    if options.out is not None and options.out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {options.out}; the picture goes beside it")
    options.out = options.out or record_path(options.verb, options.runs)
    with Bars() as bars:
        record = options.measure(options, bars)
    section = FORMATS[record["format"]](record, options.out.parent)
    print(f"{section.title}\n\n{section.markdown}\n")
    print(f"{options.out} ({record['seconds']:.0f} s)")
    return 0


def _probe(options: argparse.Namespace, progress: Any) -> Json:
    measure = importlib.import_module("benchmarks.knowledge.probe").measure_probes
    found: Json = measure(
        options.runs,
        options.dataset,
        fit_episodes=options.fit_episodes,
        test_episodes=options.episodes,
        mlp_steps=options.steps,
        control=options.control,
        device=options.device,
        out=options.out,
        progress=progress,
    )
    return found


def _surprise(options: argparse.Namespace, progress: Any) -> Json:
    measure = importlib.import_module("benchmarks.knowledge.surprise").measure_surprise
    found: Json = measure(
        options.runs, trajectories=options.trajectories, device=options.device, out=options.out, progress=progress
    )
    return found


def _rollout(options: argparse.Namespace, progress: Any) -> Json:
    measure = importlib.import_module("benchmarks.knowledge.rollout_error").measure_rollouts
    found: Json = measure(
        options.runs,
        options.dataset,
        horizon=options.horizon,
        episodes=options.episodes,
        device=options.device,
        out=options.out,
        progress=progress,
    )
    return found


def _decode(options: argparse.Namespace, progress: Any) -> Json:
    decode = importlib.import_module("benchmarks.knowledge.decode")
    found: Json = decode.measure_decoding(
        options.runs[0],
        options.dataset,
        config=decode.DecoderConfig(steps=options.steps, frames=options.frames),
        episodes=options.episodes,
        horizon=options.horizon,
        device=options.device,
        out=options.out,
        progress=progress,
    )
    return found


def _tsne(options: argparse.Namespace, progress: Any) -> Json:
    measure = importlib.import_module("benchmarks.knowledge.latent_map").measure_map
    found: Json = measure(options.runs[0], side=options.side, device=options.device, out=options.out, progress=progress)
    return found


def _from_logs(options: argparse.Namespace, progress: Any) -> Json:
    module = importlib.import_module("benchmarks.knowledge.training_curves")
    found: Json = getattr(module, f"record_{options.verb}")(options.runs, out=options.out)
    return found
