"""The commands that exchange datasets with other formats and places: import, export, push, pull."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lewm_gym.commands import Command, argument, option
from lewm_gym.progress import Bars

if TYPE_CHECKING:
    from lewm_gym.data import Dataset

EXPORTS = ("hdf5", "lerobot", "minari")
IMPORTS = ("hdf5", "lance", "lerobot", "minari")


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Exports a dataset to another format."""

    folder: Path = argument("dataset")
    format: str = option("hdf5", "output format; hdf5 is stable-worldmodel's", choices=EXPORTS)
    out: Path | None = option(
        None, "output file or folder (default: FOLDER.h5, FOLDER-minari or FOLDER-lerobot)", metavar="PATH"
    )
    lossy: bool = option(False, "Minari only: store frames as JPEG, about a fiftieth of the size")

    def __call__(self) -> int:
        """Exports, with a progress bar."""
        from lewm_gym.data import Dataset

        dataset, kind = Dataset.open(self.folder), self.format
        if self.lossy and kind != "minari":
            raise ValueError("--lossy needs --format minari: the other formats are lossless")
        folder = Path(self.folder.name) if ":/" in str(self.folder) else self.folder  # of an address
        out = self.out or (folder.with_suffix(".h5") if kind == "hdf5" else folder.with_name(f"{folder.name}-{kind}"))
        with Bars() as bars:
            advance = bars.of(f"export {self.folder}", "episode")
            if kind == "hdf5":
                from lewm_gym.data.foreign.hdf5 import export_hdf5

                export_hdf5(dataset, out, advance)
            elif kind == "minari":
                from lewm_gym.data.foreign.minari import export_minari

                export_minari(dataset, out, self.lossy, advance)
            else:
                from lewm_gym.data.foreign.lerobot_export import export_lerobot

                export_lerobot(dataset, out, progress=advance)
        files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
        print(f"{out}: {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB from {summary(dataset)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Import(Command):
    """Imports a dataset from another format."""

    source: Path = argument("HDF5 file, or Lance, Minari or LeRobot folder")
    format: str | None = option(None, "format of SOURCE (default: detected)", choices=IMPORTS)
    task: str | None = option(None, "task name to record, such as pusht; required for HDF5 and Lance")
    out: Path = option(..., "dataset folder", metavar="FOLDER")
    state: str | None = option(
        None, "column of the state (default: HDF5: state; Lance: state, or qpos,qvel; LeRobot: observation.state)"
    )
    pixels: str | None = option(None, "image column or camera, if there are several (Lance, Minari, LeRobot)")

    def __call__(self) -> int:
        """Imports, with a progress bar."""
        kind = self.format or _kind_of(self.source)
        for name, kinds in (("state", ("hdf5", "lance", "lerobot")), ("pixels", ("lance", "minari", "lerobot"))):
            if getattr(self, name) is not None and kind not in kinds:
                raise ValueError(f"--{name} does not apply to {kind}")
        with Bars() as bars:
            dataset = self._dataset(kind, bars)
        print(summary(dataset))
        return 0

    def _dataset(self, kind: str, bars: Bars) -> Dataset:
        """Returns the imported dataset."""
        source, out, task, advance = self.source, self.out, self.task, bars.of(f"import {self.source}", "episode")
        if kind == "minari":
            from lewm_gym.data.foreign.minari import import_minari

            return import_minari(source, out, task, self.pixels, advance)
        if kind == "lerobot":
            from lewm_gym.data.foreign.lerobot import STATE, import_lerobot

            return import_lerobot(source, out, task, self.pixels, self.state or STATE, advance)
        if task is None:
            raise ValueError(f"{source} does not contain its task: add --task, such as --task pusht")
        if kind == "hdf5":
            from lewm_gym.data.foreign.hdf5 import import_hdf5

            return import_hdf5(source, out, task, self.state or "state", progress=advance)
        from lewm_gym.data.foreign.lance import import_lance

        return import_lance(source, out, task, self.state, self.pixels, progress=advance)


def _kind_of(source: Path) -> str:
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}")
    if source.is_file():
        return "hdf5"
    if source.suffix == ".lance" or any(source.glob("*.lance")):
        return "lance"
    return "lerobot" if (source / "meta" / "info.json").exists() else "minari"


_ADDRESS = "s3://BUCKET/FOLDER, gs://..., another of fsspec's, or NAME/REPOSITORY on the Hugging Face Hub"


@dataclass(frozen=True, kw_only=True)
class Push(Command):
    """Uploads a dataset to S3, the Hugging Face Hub, ... Run the same command again to resume."""

    folder: Path = argument("dataset")
    address: str = argument(_ADDRESS)
    private: bool = option(False, "Hub only: make a new repository private")

    def __call__(self) -> int:
        """Prints where it is."""
        from lewm_gym.data.remote import push

        with Bars() as bars:
            address = push(self.folder, self.address, self.private, bars.of(f"push {self.folder}", "shard"))
        print(address)
        return 0


@dataclass(frozen=True, kw_only=True)
class Pull(Command):
    """Downloads a dataset from S3, the Hugging Face Hub, ... Run the same command again to resume."""

    address: str = argument(_ADDRESS)
    out: Path | None = option(None, "dataset folder (default: data/, and the address's last name)", metavar="FOLDER")
    revision: str | None = option(None, "Hub only: branch, tag or commit (default: the latest)")

    def __call__(self) -> int:
        """Downloads and describes it."""
        from lewm_gym.data import Dataset
        from lewm_gym.data.remote import pull

        out = self.out or Path("data") / self.address.rstrip("/").rpartition("/")[2]
        with Bars() as bars:
            pull(self.address, out, self.revision, progress=bars.of(f"pull {self.address}", "shard"))
        print(summary(Dataset.open(out)))
        return 0


def summary(dataset: Dataset) -> str:
    """Returns a line on a dataset."""
    megabytes = sum(shard.bytes for shard in dataset.manifest.shards) / 1e6
    return (
        f"{dataset.folder}: {dataset.n_episodes:,} episodes, {dataset.n_frames:,} frames "
        f"(mean length {dataset.lengths.mean():.1f}), {megabytes:,.1f} MB, content {dataset.content_hash}"
    )
