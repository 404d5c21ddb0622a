"""The command lines of `shift`, `tune-lambda`, `ablate` and `equal-flops`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from benchmarks import options as shared
from lewm_gym import cli
from lewm_gym.progress import Bars

SHIFT = (
    "Measures success with colours, sizes, light and the door's position changed, one at a time, on the pairs of "
    "`plan`. The same command resumes."
)
TUNE = (
    "Finds the weight of SIGReg by the paper's bisection: trains LeWM at each weight and scores it by success on pairs "
    "of a seed of their own. The same command resumes."
)
ABLATE = (
    "Trains LeWM with one setting at a time changed and measures each alike: predictor, dropout, latent, projections, "
    "knots, lambda, encoder, decoder. The same command resumes."
)
EQUAL_FLOPS = (
    "Measures success where each model may spend equally many floating-point operations on a plan: the number of "
    "candidates is what the budget allows."
)


def add_commands(commands: argparse._SubParsersAction[cli.Parser]) -> None:
    """Adds the four verbs."""
    shift = commands.add_parser("shift", help="measure success in a changed world", description=SHIFT)
    shift.set_defaults(command=_shift)
    shift.add_argument("run", type=Path, metavar="RUN", help="run folder")
    shared.add_evaluation(shift)
    shift.add_argument("--out", type=Path, metavar="FILE", help="record, JSON (default: results/shift-<run>.json)")

    tune = commands.add_parser("tune-lambda", help="find SIGReg's weight by bisection", description=TUNE)
    tune.set_defaults(command=_tune)
    _add_training(tune, "tune-lambda", seeds=[0])
    tune.add_argument(
        "--low", type=float, default=0.001, metavar="X", help="lower end of the weights (default: %(default)s)"
    )
    tune.add_argument(
        "--high", type=float, default=1.0, metavar="X", help="upper end of the weights (default: %(default)s)"
    )
    tune.add_argument("--rounds", type=int, default=2, metavar="N", help="halvings (default: %(default)s)")
    tune.add_argument("--n-pairs", type=int, default=50, metavar="N", help="tuning pairs (default: %(default)s)")

    ablate = commands.add_parser("ablate", help="train and measure the paper's ablations", description=ABLATE)
    ablate.set_defaults(command=_ablate)
    _add_training(ablate, "ablate", seeds=[0])
    ablate.add_argument(
        "--studies", nargs="+", default=["all"], metavar="NAME", help="all (default), or names as above"
    )
    shared.add_n_pairs(ablate)

    flops = commands.add_parser(
        "equal-flops", help="measure success at equal operations per plan", description=EQUAL_FLOPS
    )
    flops.set_defaults(command=_equal_flops)
    flops.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders of one task, e.g. LeWM's and PLDM's"
    )
    flops.add_argument(
        "--flops",
        type=float,
        nargs="+",
        default=[1e9, 3e9, 1e10, 3e10],
        metavar="N",
        help="operations per plan (default: 1e9 3e9 1e10 3e10)",
    )
    shared.add_evaluation(flops)
    flops.add_argument(
        "--out", type=Path, metavar="FILE", help="record, JSON (default: results/equal-flops-<first run>.json)"
    )


def _add_training(parser: argparse.ArgumentParser, name: str, seeds: list[int]) -> None:
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="folder that `python -m collect` wrote")
    parser.add_argument("--preset", default="laptop", metavar="NAME", help="of LeWM (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, metavar="N", help="of training (default: 0)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: the preset's)")
    parser.add_argument(
        "--set", nargs="+", default=[], dest="settings", metavar="NAME=VALUE", help="other settings, for all trainings"
    )
    shared.add_offset(parser)
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs", name), metavar="FOLDER", help="run folders (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"record, JSON (default: results/{name}-<dataset>.json)"
    )


def _shift(options: argparse.Namespace) -> int:
    module = importlib.import_module("benchmarks.shift")
    out = options.out or Path("results", f"shift-{options.run.resolve().name}.json")
    with Bars() as bars:
        record = module.measure_shift(options.run, out, progress=bars.on_episodes, **shared.evaluation(options))
    return _tell(module, record, out)


def _equal_flops(options: argparse.Namespace) -> int:
    module = importlib.import_module("benchmarks.equal_flops")
    out = options.out or Path("results", f"equal-flops-{options.runs[0].resolve().name}.json")
    with Bars() as bars:
        record = module.measure_equal_flops(
            options.runs, out, options.flops, progress=bars.on_episodes, **shared.evaluation(options)
        )
    return _tell(module, record, out)


def _tune(options: argparse.Namespace) -> int:
    module = importlib.import_module("benchmarks.tune_lambda")
    search = {"low": options.low, "high": options.high, "rounds": options.rounds, "n_pairs": options.n_pairs}
    out = _out(options, "tune-lambda")
    with Bars() as bars:
        record = module.tune(options.dataset, out, bars=bars, **search, **_training(options))
    return _tell(module, record, out)


def _ablate(options: argparse.Namespace) -> int:
    module = importlib.import_module("benchmarks.ablate")
    studies = tuple(module.STUDIES) if options.studies == ["all"] else tuple(options.studies)
    out = _out(options, "ablate")
    with Bars() as bars:
        record = module.ablate(
            options.dataset, out, studies=studies, n_pairs=options.n_pairs, bars=bars, **_training(options)
        )
    return _tell(module, record, out)


def _training(options: argparse.Namespace) -> dict[str, Any]:
    if len(set(options.seeds)) < len(options.seeds) or min(options.seeds) < 0:
        raise ValueError(f"--seeds must be different and not negative, got {options.seeds}")
    settings = importlib.import_module("agents.__main__").parse_settings(options.settings)
    if options.steps is not None:
        settings["steps"] = options.steps
    return {
        "runs": options.runs,
        "preset": options.preset,
        "settings": settings,
        "seeds": options.seeds,
        "offset_steps": options.offset,
        "device": options.device,
    }


def _out(options: argparse.Namespace, name: str) -> Path:
    out: Path = options.out or Path("results", f"{name}-{options.dataset.resolve().name}.json")
    if out.suffix != ".json":
        raise ValueError(f"--out must end in .json, got {out}; results of the trainings go into a folder beside it")
    return out


def _tell(module: Any, record: dict[str, Any], out: Path) -> int:
    section = module.section(record, out.parent)
    print(f"{section.title}\n\n{section.markdown}\n\n{out}")
    return 0
