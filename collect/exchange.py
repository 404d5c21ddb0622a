"""The commands that exchange datasets with other formats and the Hub: import, export, push, pull."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lewm_gym.cli import Parser

EXPORTS = ("hdf5", "lerobot", "minari")
IMPORTS = ("hdf5", "lance", "lerobot", "minari")
Bar = Callable[[str, str], AbstractContextManager[Callable[..., None]]]
Summary = Callable[[Any], str]


def add_commands(commands: argparse._SubParsersAction[Parser], bar: Bar, summary: Summary) -> None:
    """Adds the four commands.

    Args:
        commands: Subparsers of the parser.
        bar: Creates a progress bar from a title and a unit.
        summary: Describes a dataset in one line.
    """
    for name, help_text, add, main in (
        ("export", "export a dataset to another format", _export_options, _export),
        ("import", "import a dataset from another format", _import_options, _import),
        ("push", "upload a dataset to the Hugging Face Hub", _push_options, _push),
        ("pull", "download a dataset from the Hugging Face Hub", _pull_options, _pull),
    ):
        verb, what = help_text.split(maxsplit=1)
        parser = commands.add_parser(name, help=help_text, description=f"{verb.capitalize()}s {what}.")
        add(parser)
        parser.set_defaults(main=lambda options, main=main: main(options, bar, summary))


def _export_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="dataset")
    parser.add_argument(
        "--format", choices=EXPORTS, default="hdf5", help="output format (default: hdf5, stable-worldmodel's)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="output file or folder (default: FOLDER.h5, FOLDER-minari or FOLDER-lerobot)",
    )
    parser.add_argument(
        "--lossy", action="store_true", help="Minari only: store frames as JPEG, about a fiftieth of the size"
    )


def _export(options: argparse.Namespace, bar: Bar, summary: Summary) -> None:
    from lewm_gym.data import Dataset

    dataset, folder = Dataset.open(options.folder), options.folder
    if options.lossy and options.format != "minari":
        raise ValueError("--lossy needs --format minari: the other formats are lossless")
    default = (
        folder.with_suffix(".h5") if options.format == "hdf5" else folder.with_name(f"{folder.name}-{options.format}")
    )
    out: Path = options.out or default
    with bar(f"export {folder}", "episode") as advance:
        if options.format == "hdf5":
            from lewm_gym.data.foreign.hdf5 import export_hdf5

            export_hdf5(dataset, out, advance)
        elif options.format == "minari":
            from lewm_gym.data.foreign.minari import export_minari

            export_minari(dataset, out, options.lossy, advance)
        else:
            from lewm_gym.data.foreign.lerobot_export import export_lerobot

            export_lerobot(dataset, out, progress=advance)
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    print(f"{out}: {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB from {summary(dataset)}")


def _import_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SOURCE", help="HDF5 file, or Lance, Minari or LeRobot folder")
    parser.add_argument("--format", choices=IMPORTS, help="format of SOURCE (default: detected)")
    parser.add_argument(
        "--task", metavar="NAME", help="task name to record, such as pusht; required for HDF5 and Lance"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="dataset folder")
    parser.add_argument(
        "--state",
        metavar="NAME",
        help="column of the state (default: HDF5: state; Lance: state, or qpos,qvel; LeRobot: observation.state)",
    )
    parser.add_argument(
        "--pixels", metavar="NAME", help="image column or camera, if there are several (Lance, Minari, LeRobot)"
    )


def _import(options: argparse.Namespace, bar: Bar, summary: Summary) -> None:
    kind = options.format or _kind_of(options.source)
    for name, kinds in (("state", ("hdf5", "lance", "lerobot")), ("pixels", ("lance", "minari", "lerobot"))):
        if getattr(options, name) is not None and kind not in kinds:
            raise ValueError(f"--{name} does not apply to {kind}")
    if kind in ("hdf5", "lance") and options.task is None:
        raise ValueError(f"{options.source} does not contain its task: add --task, such as --task pusht")
    with bar(f"import {options.source}", "episode") as advance:
        if kind == "hdf5":
            from lewm_gym.data.foreign.hdf5 import import_hdf5

            dataset = import_hdf5(options.source, options.out, options.task, options.state or "state", progress=advance)
        elif kind == "lance":
            from lewm_gym.data.foreign.lance import import_lance

            dataset = import_lance(
                options.source, options.out, options.task, options.state, options.pixels, progress=advance
            )
        elif kind == "minari":
            from lewm_gym.data.foreign.minari import import_minari

            dataset = import_minari(options.source, options.out, options.task, options.pixels, advance)
        else:
            from lewm_gym.data.foreign.lerobot import STATE, import_lerobot

            dataset = import_lerobot(
                options.source, options.out, options.task, options.pixels, options.state or STATE, advance
            )
    print(summary(dataset))


def _kind_of(source: Path) -> str:
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}")
    if source.is_file():
        return "hdf5"
    if source.suffix == ".lance" or any(source.glob("*.lance")):
        return "lance"
    return "lerobot" if (source / "meta" / "info.json").exists() else "minari"


def _push_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="dataset")
    parser.add_argument("repository", metavar="NAME/REPOSITORY", help="created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def _push(options: argparse.Namespace, bar: Bar, summary: Summary) -> None:
    from lewm_gym.data.foreign.hub import push

    print(push(options.folder, options.repository, options.private))


def _pull_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("repository", metavar="NAME/REPOSITORY", help="dataset on the Hub")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="dataset folder (default: data/REPOSITORY)")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default: the latest)")


def _pull(options: argparse.Namespace, bar: Bar, summary: Summary) -> None:
    from lewm_gym.data.foreign.hub import pull

    out = options.out or Path("data") / options.repository.rpartition("/")[2]
    print(summary(pull(options.repository, out, options.revision)))
