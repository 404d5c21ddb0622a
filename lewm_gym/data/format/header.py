"""What the files of a dataset say of its origin and its encoding: the header of every shard and of the manifest."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from lewm_gym.data.episode import Episode
from lewm_gym.files import check_seal

SCHEMA = 2
_UNSEALED = 1  # the schema of datasets whose records hold no hash of themselves; all else is the same

#: Packages whose version can change the data: every task's simulator, where installed.
SIMULATORS = ("gymnasium", "pymunk", "pygame", "mujoco", "dm_control", "ogbench", "stable_baselines3")

Name = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Hash = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
Vector = Annotated[tuple[float, ...], Meta(min_length=1)]
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class Column:
    """One column of a dataset.

    Attributes:
        size: Numbers per frame.
        dtype: numpy's name of their type.
        units: Units of the numbers, such as "px" or "rad"; empty where they are mixed or none.
        role: What it is.
    """

    size: Count
    dtype: Literal["float32", "float64", "bool"]
    units: str
    role: Literal["action", "state", "success", "quantity"]


@dataclass(frozen=True)
class Header:
    """The metadata of a shard or a dataset.

    The recipe (task to `states_only`, and the codec but for its level) determines the data: shards belong to the same
    dataset only if their recipes are equal. The other fields describe the origin and the encoding of the data.

    Attributes:
        task: Name of the task, one of `lewm_gym.tasks.TASKS` or the id of a foreign environment.
        policy: Name of the behaviour policy.
        noise: The policy's noise level, in its own unit; None if it has none.
        seed: Seed of the collection; episode i is a function of (task, policy, seed, i).
        render_quality: Name of the renderer's settings.
        states_only: Whether there are no frames; they can be rendered later.
        versions: Package name -> version, with "python".
        gl_renderer: Name of the OpenGL renderer, if one was used.
        columns: Name -> column, in the order of the file.
        codec: How frames are stored (`lewm_gym.data.codec`), or None without frames.
        variations: Names of the variations that were sampled for every episode.
        action_low: Smallest action, per coordinate, in the environment's units; None is -1, as in all TASKS.
        action_high: Largest action, likewise; None is 1.
        picture_every: N, if only frames 0, N, 2N, ... of each episode have images.
    """

    task: Name
    policy: str
    noise: float | None
    seed: Annotated[int, Meta(ge=0)]
    render_quality: str = "default"
    states_only: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    gl_renderer: str | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    codec: dict[str, Any] | None = None
    variations: tuple[str, ...] = ()
    action_low: Vector | None = None
    action_high: Vector | None = None
    picture_every: Count = 1

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields that must agree for shards to be one dataset."""
        names = ("task", "policy", "noise", "seed", "render_quality", "states_only", "variations", "picture_every")
        codec = self.codec and {name: value for name, value in self.codec.items() if name != "level"}
        return {**{name: getattr(self, name) for name in names}, "codec": codec}

    def with_columns(self, columns: dict[str, Column], versions: dict[str, str], gl: str | None = None) -> Header:
        """Returns the header with the fields that follow from the first episode."""
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
    def read(record: Mapping[str, Any]) -> Header:
        """Returns the header in a record of a shard or a manifest; fields that this version does not know are ignored.

        Raises:
            ValueError: Naming the invalid field.
        """
        header = read_as(Header, record)
        for name, role in (("action", "action"), ("state", "state"), ("success", "success")):
            if name not in header.columns or header.columns[name].role != role:
                raise ValueError(f"columns: there is no column {name!r}")
        low, high = header.action_bounds(header.columns["action"].size)
        if not (len(low) == len(high) == header.columns["action"].size and (low <= high).all()):
            raise ValueError("action_low, action_high: not the bounds of its actions")
        return header


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


def differences(ours: Header, theirs: Header) -> str:
    """Returns the fields of two recipes that differ, as "seed 0 and 1", or an empty string."""
    return ", ".join(
        f"{name} {value!r} and {theirs.recipe[name]!r}"
        for name, value in ours.recipe.items()
        if theirs.recipe[name] != value
    )


def merged(headers: Iterable[Header]) -> Header:
    """Returns one header for shards of equal recipe; different versions are all listed ("1.2 / 1.3")."""
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


def read_as(kind: type[_Record], record: Mapping[str, Any]) -> _Record:
    """Returns a record as an object of a class; raises ValueError naming the invalid field."""
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def check_record(record: dict[str, Any], path: Path, remedy: str) -> dict[str, Any]:
    """Returns the record of a file; raises ValueError if it was altered, or this version cannot read it."""
    schema = record.get("schema")
    if schema not in (SCHEMA, _UNSEALED):
        raise ValueError(
            f"{path}: dataset schema {schema!r}, but this version reads {SCHEMA}: "
            "update lewm-gym or collect the dataset again"
        )
    if schema != _UNSEALED:
        check_seal(record, path, remedy)
    return record
