"""Import of LeRobot datasets (v2.x and v3.0).

Layout of v3.0: `meta/info.json` (features, fps, patterns of paths), `meta/episodes/*/*.parquet` (a row per episode: its
length, and where its rows and videos are), `data/*/*.parquet` (many episodes each), `videos/CAMERA/*/*.mp4`. Layout of
v2.x: a parquet and an mp4 file per episode and `meta/episodes.jsonl`. Images are in videos or, as encoded images,
in the tables. The camera's become 224 x 224 (stretched), `observation.state` the state, other numeric columns named
`observation.` or `next.reward` quantities, `next.success` the success.
"""

from __future__ import annotations

import io
import math
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from msgspec import Meta, Struct
from numpy.typing import NDArray

from lewm_gym.data.codec import codec_for
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import FRAME_SHAPE, Episode
from lewm_gym.data.foreign.imports import Progress, import_episodes, padded_actions, resized_frames, state_of, vectors
from lewm_gym.data.format.header import Header
from lewm_gym.files import inside

STATE = "observation.state"
#: Fields of the patterns of paths, such as {file_index:03d}, and how their numbers may be formatted.
_FIELD = re.compile(r"\{(\w+)(:[^{}]*)?\}")
_FORM = re.compile(r"(:0?\dd?)?")
_SUCCESS = "next.success"


def import_lerobot(
    source: str | Path,
    folder: str | Path,
    task: str | None = None,
    camera: str | None = None,
    state: str = STATE,
    progress: Progress | None = None,
) -> Dataset:
    """Returns the dataset made from a LeRobot dataset. Can be resumed, like a collection.

    The bounds of actions are the smallest and largest that were recorded.

    Args:
        source: LeRobot's folder of it, with `meta/info.json`.
        folder: Output folder.
        task: Name to record; None is "lerobot:" and the folder's name.
        camera: Feature to take the images from; None: the only one, or the one that we export.
        state: Feature to take as the state.
        progress: Called after every episode.

    Raises:
        ValueError: If it is not a LeRobot dataset of a supported version, or has no images or actions.
    """
    robot, source = LeRobotFolder(Path(source)), Path(source)
    camera = robot.choose_camera(camera)
    low, high = robot.action_bounds()
    name = source.resolve().name
    task = task or f"lerobot:{name}"
    header = Header(
        task=task,
        policy=f"imported from LeRobot {name} ({robot.version}, {robot.info.fps:g} fps, {camera})",
        noise=None,
        seed=0,
        codec=codec_for(task).as_json(),
        action_low=tuple(low),
        action_high=tuple(high),
    )
    return import_episodes(
        Path(folder), header, len(robot.episodes), lambda i: robot.read(i, camera, state), source, progress=progress
    )


class LeRobotFolder:
    """A LeRobot dataset on disk.

    Args:
        folder: With `meta/info.json`.

    Raises:
        ValueError: If it is not a LeRobot dataset, or its version is not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "meta" / "info.json"
        if not path.is_file():
            raise ValueError(f"{folder} is not a LeRobot dataset, it needs meta/info.json")
        try:
            self.info = msgspec.json.decode(path.read_bytes(), type=_Info)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged, or not of a LeRobot dataset ({error}): copy it again") from None
        self.version, self.features = self.info.codebase_version, self.info.features
        if not self.version.startswith(("v2.", "v3.")):
            raise ValueError(f"{folder} is a LeRobot dataset of {self.version}; v2.0, v2.1 and v3.0 can be read")
        if "action" not in self.features:
            raise ValueError(f"{folder} has no actions; its features: {', '.join(self.features)}")
        self._is_v3 = self.version.startswith("v3.")
        try:
            rows = self._rows_v3() if self._is_v3 else self._rows_v2()
            self.episodes = sorted((_Row.of(row) for row in rows), key=lambda row: row.episode_index)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
            raise ValueError(f"{folder}: its list of episodes cannot be read ({error}): copy it again") from None
        self._table = lru_cache(maxsize=2)(pq.read_table)

    def _rows_v2(self) -> list[dict[str, Any]]:
        lines = (self.folder / "meta" / "episodes.jsonl").read_bytes().splitlines()
        return [msgspec.json.decode(line) for line in lines if line]

    def _rows_v3(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
            rows += pq.read_table(path, columns=names).to_pylist()
        return rows

    def choose_camera(self, wanted: str | None) -> str:
        """Returns the feature to take images from.

        Raises:
            ValueError: If there is none, or more than one and none is chosen.
        """
        cameras = [name for name, feature in self.features.items() if feature.dtype in ("image", "video")]
        if wanted is None and len(cameras) == 1:
            return cameras[0]
        if wanted in cameras:
            return str(wanted)
        asked = f"has no camera {wanted!r}" if wanted else "needs a camera: choose one with --pixels NAME"
        raise ValueError(f"{self.folder} {asked}; its cameras: {', '.join(cameras) or 'none'}")

    def action_bounds(self) -> tuple[list[float], list[float]]:
        """Returns the smallest and the largest recorded action, per coordinate."""
        paths = sorted((self.folder / "data").glob("*/*.parquet"))
        if not paths:
            raise ValueError(f"{self.folder} has no data/*/*.parquet: copy it again")
        extremes = []
        for path in paths:
            try:
                actions = _matrix(pq.read_table(path, columns=["action"]).column("action"))
                extremes.append((actions.min(0), actions.max(0)))
            except (OSError, KeyError, ValueError, pa.ArrowException) as error:
                raise ValueError(f"{path} cannot be read ({error}): copy it again") from None
        if len({low.shape for low, _ in extremes}) > 1:
            raise ValueError(f"{self.folder}: its actions differ in size: copy it again")
        low, high = (np.stack(values).astype(np.float32) for values in zip(*extremes, strict=True))
        return low.min(0).tolist(), high.max(0).tolist()

    def read(self, number: int, camera: str, state: str) -> Episode:
        """Returns an episode.

        Raises:
            ValueError: If its files are missing, damaged, or of another length.
        """
        row = self.episodes[number]
        path = self._path(self.info.data_path, self._place(row, "data"))
        try:
            table = self._table(path)
            table = table.filter(pc.equal(table.column("episode_index"), row.episode_index))
            return self._episode(row, table, path, camera, state)
        except (OSError, KeyError, TypeError, AttributeError, NotImplementedError, pa.ArrowException) as error:
            raise ValueError(f"{path} cannot be read ({error}): copy it again") from None

    def _episode(self, row: _Row, table: pa.Table, path: Path, camera: str, state: str) -> Episode:
        length = row.length
        if table.num_rows != length:
            raise ValueError(f"{path} has {table.num_rows} of its {length} rows: copy it again")
        columns = {
            name: _matrix(table.column(name))
            for name in table.column_names
            if name == state or name == "next.reward" or (name.startswith("observation.") and name != camera)
            if name not in self.features or self.features[name].dtype not in ("image", "video", "string")
        }
        numbers = vectors(columns, length)
        success = np.zeros(length, bool)
        if _SUCCESS in table.column_names:
            success[1:] = _matrix(table.column(_SUCCESS))[:-1, 0]
        return Episode(
            pixels=self._pictures(row, table, camera),
            action=padded_actions(_matrix(table.column("action")), length),
            state=state_of(numbers, length, state),
            success=success,
            quantities={name: values.astype(np.float32) for name, values in numbers.items() if name != state},
        )

    def _place(self, row: _Row, of: str) -> dict[str, int]:
        """Returns the values for the path pattern of an episode's table or video."""
        if self._is_v3:
            return {"chunk_index": row.whole(f"{of}/chunk_index"), "file_index": row.whole(f"{of}/file_index")}
        return {"episode_chunk": row.episode_index // self.info.chunks_size, "episode_index": row.episode_index}

    def _path(self, pattern: str, place: dict[str, Any]) -> Path:
        """Returns the path of a file of the dataset; raises ValueError if it is invalid or outside."""
        fields = _FIELD.findall(pattern)
        if not all(n in place and _FORM.fullmatch(form) for n, form in fields) or set("{}") & {
            *_FIELD.sub("", pattern)
        }:
            raise ValueError(f"{self.folder}: {pattern!r} is not a valid path pattern")
        return inside(self.folder, pattern.format(**place))

    def _pictures(self, row: _Row, table: pa.Table, camera: str) -> NDArray[np.uint8]:
        if self.features[camera].dtype == "image":
            return resized_frames(_same_size([self._picture(cell) for cell in table.column(camera).to_pylist()]))
        if self.info.video_path is None:
            raise ValueError(f"{self.folder}: meta/info.json lacks the video_path of {camera}")
        path = self._path(self.info.video_path, {"video_key": camera, **self._place(row, f"videos/{camera}")})
        start = float(row.values[f"videos/{camera}/from_timestamp"]) if self._is_v3 else 0.0
        if not (0 <= start < math.inf):
            raise ValueError(f"{self.folder}: episode {row.episode_index} begins at {start} s of its video")
        return read_video(path, start, table.num_rows, self.info.fps)

    def _picture(self, cell: Any) -> NDArray[np.uint8]:
        from PIL import Image

        if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
            raise ValueError("an image is missing")
        source: Any = io.BytesIO(cell["bytes"]) if cell.get("bytes") else inside(self.folder, str(cell["path"]))
        try:
            with Image.open(source) as picture:
                return np.asarray(picture.convert("RGB"))
        except Exception as error:  # Pillow's readers raise whatever a damaged image provokes
            where = "in its table" if cell.get("bytes") else str(cell["path"])
            raise ValueError(f"an image, {where}, cannot be read ({error}): copy it again") from None


class _Feature(Struct):
    dtype: str


class _Info(Struct):
    """The fields of `meta/info.json` that are used."""

    codebase_version: str
    features: dict[str, _Feature]
    data_path: str
    fps: Annotated[float, Meta(gt=0)]
    video_path: str | None = None
    chunks_size: Annotated[int, Meta(ge=1)] = 1000


class _Row(Struct):
    """LeRobot's record of an episode: number, length, and further columns."""

    episode_index: int
    length: int
    values: dict[str, Any]

    @staticmethod
    def of(values: dict[str, Any]) -> _Row:
        """Returns a row of a table or a line of JSON."""
        row = _Row(values["episode_index"], values["length"], values)
        row.whole("episode_index")
        row.whole("length")
        return row

    def whole(self, name: str) -> int:
        """Returns an integer of the row; raises ValueError if it is none."""
        value = self.values.get(name)
        if type(value) is not int or not 0 <= value < 2**31:
            raise ValueError(f"{name} of an episode must be an integer, got {value!r}")
        return value


def read_video(path: Path, start_s: float, count: int, fps: float) -> NDArray[np.uint8]:
    """Returns frames of a video scaled to (count, 224, 224, 3) uint8.

    Args:
        path: The video.
        start_s: Time of the first frame.
        count: How many.
        fps: Frames per second.

    Raises:
        ValueError: If the video is missing, damaged or too short.
    """
    import imageio_ffmpeg

    if not path.is_file():
        raise ValueError(f"the video {path} is missing: copy it again")
    height, width, channels = FRAME_SHAPE
    # half a frame early: times are rounded, and the first frame at or after the time is taken
    seek = [] if start_s == 0.0 else ["-ss", f"{max(start_s - 0.5 / fps, 0.0):.6f}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-threads", "1", *seek, "-i", str(path)]
    command += ["-frames:v", str(count), "-fps_mode", "passthrough", "-vf", f"scale={width}:{height}:flags=area"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=False)
    frames = len(done.stdout) // (height * width * channels)
    if done.returncode or frames != count:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"{frames} of {count} frames"]
        raise ValueError(f"the video {path} cannot be read ({reason[0]}): copy it again")
    return np.frombuffer(done.stdout, np.uint8).reshape(count, *FRAME_SHAPE)


def _same_size(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError("its images differ in size")
    return np.stack(pictures)


def _matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    """Returns a column of numbers or of lists (of lists) of them, (n, k)."""
    count, values = len(column), column.combine_chunks()
    while (
        pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type) or pa.types.is_large_list(values.type)
    ):
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "biuf" or len(numbers) % max(count, 1):
        raise ValueError(f"a column of {column.type} is not one of vectors of numbers")
    return numbers.reshape(count, -1)
