"""Import and export of Minari datasets (farama.org).

Import: a Minari folder with images among its observations. Images are resized to 224 x 224; the state is "state" or,
if there is none, the concatenation of all other observations, each of which is also a quantity.
Export: observations are a dictionary of `pixels`, `state` and the quantities; `infos` has `success`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lewm_gym.data.codec import codec_for
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import FRAME_SHAPE, Episode
from lewm_gym.data.foreign.hdf5_files import Sink, first_line, reading
from lewm_gym.data.foreign.imports import Progress, import_episodes, padded_actions, resized_frames, state_of, vectors
from lewm_gym.data.format.header import Header
from lewm_gym.files import atomic_folder

_TASK_KEY = "lewm_gym_task"
_SUCCESS = ("success", "is_success")


def import_minari(
    source: str | Path,
    folder: str | Path,
    task: str | None = None,
    pixels: str | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Returns the dataset made from a Minari dataset. Can be resumed, like a collection.

    Args:
        source: Minari's folder of it, with `data/` inside, or that `data/` folder itself.
        folder: Output folder.
        task: Name to record; None: the one that we exported, or "gym:" and its environment's id.
        pixels: Name of the observation that is the image ("camera/front" where dictionaries are nested); None is
            the only one that can be.
        progress: Called after every episode.

    Raises:
        ValueError: If it is not a Minari dataset, has no images, or its actions are not bounded vectors.
        ImportError: Without minari.
    """
    (minari, h5py), source = _minari(), Path(source)
    data = source / "data" if (source / "data").is_dir() else source
    for path in data.glob("*.hdf5"):
        with reading(path, h5py):  # which rejects data outside the file
            pass
    try:
        opened = minari.MinariDataset(data)
        space, shown, count = opened.action_space, opened.observation_space, int(opened.total_episodes)
        named = opened.storage.metadata.get(_TASK_KEY) or _task_of(opened)
        policy = f"imported from Minari {opened.spec.dataset_id}"
    except Exception as error:  # whatever its readers of JSON, spaces and specs come upon
        raise ValueError(f"{source} is not a Minari dataset: {first_line(error)}") from error
    if not isinstance(space, spaces.Box) or not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"{source}: actions must be a bounded Box, got {space}")
    pixels = _choose_pixels(shown, pixels, source)
    task = task or named
    if not isinstance(task, str):
        raise ValueError(f"{source} calls its task {task!r}, which is no name: add --task")
    header = Header(
        task=task,
        policy=policy,
        noise=None,
        seed=0,
        codec=codec_for(task).as_json(),
        action_low=tuple(space.low.ravel().tolist()),
        action_high=tuple(space.high.ravel().tolist()),
    )
    return import_episodes(
        Path(folder), header, count, lambda i: _episode(opened, i, pixels), source, progress=progress
    )


def export_minari(dataset: Dataset, folder: str | Path, lossy: bool = False, progress: Progress | None = None) -> None:
    """Writes a dataset as a folder that Minari reads, atomically.

    Args:
        dataset: With frames.
        folder: Output folder; must not exist. Its name becomes the id's.
        lossy: Compress frames as JPEG, as Minari does by default; otherwise they stay exact, at 150 kB each.
        progress: Called after every episode.

    Raises:
        ValueError: If the dataset has no frames, or not all, or the folder exists.
        ImportError: Without minari.
    """
    (minari, _), folder = _minari(), Path(folder)
    dataset.codec  # noqa: B018  raises without frames
    dataset.require_all_pictures("Minari's layout")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    with atomic_folder(folder) as partial:
        (partial / "data").mkdir()
        storage = MinariStorage.new(
            partial / "data",
            observation_space=_observation_space(dataset),
            action_space=spaces.Box(dataset.action_low, dataset.action_high, dtype=np.float32),
            data_format="hdf5",
            jpeg_encoding=lossy,
        )
        with Sink(partial / "data" / "main_data.hdf5", "r+") as sink:
            storage._file_path = sink  # minari opens it for every episode
            for index in range(dataset.n_episodes):
                storage.update_episodes([EpisodeBuffer(id=index, **_as_buffer(dataset.episode(index)))])
                sink.check()
                if progress is not None:
                    progress(index + 1, dataset.n_episodes)
        storage.update_metadata(
            {
                "dataset_id": f"lewm-gym/{folder.name}-v0",
                "minari_version": minari.__version__,
                _TASK_KEY: dataset.task,
                "algorithm_name": dataset.header.policy,
            }
        )


def _observation_space(dataset: Dataset) -> spaces.Dict:
    sizes = {name: column.size for name, column in dataset.header.columns.items() if column.role == "quantity"}
    return spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, FRAME_SHAPE, np.uint8),
            "state": spaces.Box(-np.inf, np.inf, (dataset.header.columns["state"].size,), np.float64),
            **{name: spaces.Box(-np.inf, np.inf, (size,), np.float32) for name, size in sizes.items()},
        }
    )


def _as_buffer(episode: Episode) -> dict[str, Any]:
    steps = len(episode) - 1
    ended = episode.success[1:] & (np.arange(steps) == steps - 1)
    return {
        "observations": {"pixels": episode.pixels, "state": episode.state, **episode.quantities},
        "actions": episode.action[:-1],
        "rewards": np.where(episode.success[1:], 0.0, -1.0),
        "terminations": ended,
        "truncations": ~ended & (np.arange(steps) == steps - 1),
        "infos": {"success": episode.success},
    }


def _episode(opened: Any, number: int, pixels: str) -> Episode:
    try:
        return _read(opened[number], pixels)
    except ValueError:
        raise
    except Exception as error:  # whatever its reader comes upon in a damaged file
        raise ValueError(f"cannot be read ({first_line(error)}): copy it again") from error


def _read(episode: Any, pixels: str) -> Episode:
    columns = _leaves(episode.observations)
    pictures = columns.pop(pixels)
    length = len(pictures)
    numbers = vectors(columns, length)
    infos = _leaves(episode.infos or {})
    flags = [np.asarray(infos[name], bool).ravel() for name in _SUCCESS if name in infos]
    success = flags[0] if flags else np.zeros(length, bool)
    if len(success) == length - 1:  # of steps, not of frames
        success = np.concatenate([[False], success])
    return Episode(
        pixels=resized_frames(pictures),
        action=padded_actions(episode.actions, length),
        state=state_of(numbers, length),
        success=success,
        quantities={name: values.astype(np.float32) for name, values in numbers.items() if name != "state"},
    )


def _leaves(tree: Any, path: str = "") -> dict[str, NDArray[Any]]:
    """Returns the arrays of nested dictionaries and tuples by path, "observation" for a bare array."""
    if isinstance(tree, dict | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, part in items for k, v in _leaves(part, f"{path}/{name}".lstrip("/")).items()}
    return {path or "observation": np.asarray(tree)}


def _choose_pixels(space: spaces.Space[Any], wanted: str | None, source: Path) -> str:
    flat = _leaf_spaces(space)
    pictures = [name for name, leaf in flat.items() if _is_picture(leaf)]
    if wanted is None and len(pictures) == 1:
        return pictures[0]
    if wanted is not None and wanted in pictures:
        return wanted
    found = f"images among its observations: {', '.join(pictures) or 'none'}; others: " + ", ".join(
        name for name in flat if name not in pictures
    )
    if wanted is not None:
        raise ValueError(f"{source} has no image {wanted!r}; {found}")
    raise ValueError(f"{source} needs one image, (h, w, 3) uint8: choose it with --pixels NAME; {found}")


def _leaf_spaces(space: spaces.Space[Any], path: str = "") -> dict[str, spaces.Space[Any]]:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        items: Any = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return {k: v for name, part in items for k, v in _leaf_spaces(part, f"{path}/{name}".lstrip("/")).items()}
    return {path or "observation": space}


def _is_picture(space: spaces.Space[Any]) -> bool:
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) == 3 and 3 in (shape[0], shape[2])


def _task_of(opened: Any) -> str:
    spec = opened.env_spec
    return f"gym:{spec.id}" if spec is not None else f"minari:{opened.spec.dataset_id}"


def _minari() -> tuple[Any, Any]:
    try:
        import h5py
        import minari
    except ImportError:
        raise ImportError("Minari datasets need minari and h5py: pip install 'lewm-gym[minari]'") from None
    return minari, h5py
