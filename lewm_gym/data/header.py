"""What a dataset says about itself: how it was made, with what, and what its columns hold."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.data.episode import Episode

SCHEMA = 1

#: Packages whose version can change the data: every task's simulator, where installed.
SIMULATORS = ("gymnasium", "pymunk", "pygame", "mujoco", "dm_control", "ogbench", "stable_baselines3")


@dataclass(frozen=True)
class Column:
    """One column of a dataset.

    Attributes:
        size: Numbers per frame.
        dtype: numpy's name of their type.
        units: Of the numbers, such as "px" or "rad"; empty where they are mixed or none.
        role: "action", "state", "success" or "quantity".
    """

    size: int
    dtype: str
    units: str
    role: str


@dataclass(frozen=True)
class Header:
    """Everything about a shard, or a whole dataset, but its data.

    The recipe (task to `states_only`, and the codec but for its level) determines the data: shards belong together
    only if theirs are equal. The rest tells where the data come from and how to read them.

    Attributes:
        task: Name of the task, one of `lewm_gym.tasks.TASKS` or the id of a foreign environment.
        policy: Name of the behaviour policy.
        noise: The policy's noise level, in its own unit; None if it has none.
        seed: Seed of the collection; episode i is a function of (task, policy, seed, i).
        render_quality: Name of the renderer's settings.
        states_only: Whether the frames were left out, to be rendered later.
        versions: Package name -> version, with "python".
        gl_renderer: What drew the frames, if OpenGL did.
        columns: Name -> column, in the order of the file.
        codec: How frames are stored (`lewm_gym.data.codec`), or None without frames.
        variations: Names of the factors of variation that were drawn anew for every episode.
        action_low: Smallest action, per coordinate, in the environment's units; None is -1, as in all TASKS.
        action_high: Largest action, likewise; None is 1.
        picture_every: N, where only the pictures of frames 0, N, 2N, ... of each episode are stored.
    """

    task: str
    policy: str
    noise: float | None
    seed: int
    render_quality: str = "default"
    states_only: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    gl_renderer: str | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    codec: dict[str, Any] | None = None
    variations: tuple[str, ...] = ()
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None
    picture_every: int = 1

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields that must agree for shards to be one dataset."""
        names = ("task", "policy", "noise", "seed", "render_quality", "states_only", "variations", "picture_every")
        codec = self.codec and {name: value for name, value in self.codec.items() if name != "level"}
        return {**{name: getattr(self, name) for name in names}, "codec": codec}

    def with_columns(self, columns: dict[str, Column], versions: dict[str, str], gl: str | None = None) -> Header:
        """Returns the header with what only the first episode tells."""
        return replace(self, columns=columns, versions=versions, gl_renderer=gl)

    def as_json(self) -> dict[str, Any]:
        """Returns the header as a JSON object."""
        return asdict(self)

    def action_bounds(self, action_size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the smallest and the largest action, each (action_size,)."""
        low = np.full(action_size, -1.0) if self.action_low is None else self.action_low
        high = np.full(action_size, 1.0) if self.action_high is None else self.action_high
        return np.array(low, np.float32), np.array(high, np.float32)

    @staticmethod
    def from_json(record: dict[str, Any]) -> Header:
        """Returns the header that `as_json` gave; fields of newer minor versions are ignored."""
        known = {name: record[name] for name in Header.__dataclass_fields__ if name in record}
        known["columns"] = {name: Column(**column) for name, column in record["columns"].items()}
        for name in ("variations", "action_low", "action_high"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return Header(**known)


def columns_of(episode: Episode, units: Mapping[str, str]) -> dict[str, Column]:
    """Returns the description of an episode's columns."""
    columns = {
        "action": Column(episode.action.shape[1], "float32", "", "action"),
        "state": Column(episode.state.shape[1], "float64", "", "state"),
        "success": Column(1, "bool", "", "success"),
    }
    for name, values in episode.quantities.items():
        columns[name] = Column(values.shape[1], "float32", units.get(name, ""), "quantity")
    return columns


def check_schema(record: dict[str, Any], where: str) -> None:
    """Raises ValueError unless the record's schema number is one that this version reads."""
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: dataset schema {record.get('schema')!r}, but this version reads {SCHEMA}: "
            "update lewm-gym or collect the dataset again"
        )


def differences(ours: Header, theirs: Header) -> str:
    """Returns the fields of two recipes that differ, as "seed 0 and 1", or an empty string."""
    return ", ".join(
        f"{name} {value!r} and {theirs.recipe[name]!r}"
        for name, value in ours.recipe.items()
        if theirs.recipe[name] != value
    )


def merged(headers: Iterable[Header]) -> Header:
    """Returns one header for shards of equal recipe; where versions differ, all are named ("1.2 / 1.3")."""
    headers = list(headers)
    names = sorted({name for header in headers for name in header.versions})
    versions = {name: _all_of(header.versions.get(name) for header in headers) for name in names}
    return replace(headers[0], versions=versions, gl_renderer=_all_of(h.gl_renderer for h in headers) or None)


def _all_of(values: Iterable[str | None]) -> str:
    return " / ".join(sorted({part for value in values if value for part in value.split(" / ")}))


def installed_versions(requirements: Iterable[str] = SIMULATORS) -> dict[str, str]:
    """Returns the versions that the data depend on: Python, numpy, this package, the codec and the simulators."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "lewm-gym", "zstandard", "pyarrow", *requirements):
        try:
            found[re.sub(r"[-_]+", "-", name)] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
