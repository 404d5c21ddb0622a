"""LeRobot datasets (v2.x and v3.0): recordings of robots, with cameras and actions, become datasets here.

Layout of v3.0: `meta/info.json` (features, fps, patterns of paths), `meta/episodes/*/*.parquet` (a row per episode: its
length, and where its rows and videos are), `data/*/*.parquet` (many episodes each), `videos/CAMERA/*/*.mp4`. Layout of
v2.x: a parquet and an mp4 file per episode and `meta/episodes.jsonl`. Pictures are in videos or, as encoded images,
in the tables. The camera's become 224 x 224 (stretched), `observation.state` the state, other numeric columns named
`observation.` or `next.reward` quantities, `next.success` the success.
"""

from __future__ import annotations

import io
import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lewm_gym.data.codec import codec_for
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.episode import FRAME_SHAPE, Episode
from lewm_gym.data.header import Header
from lewm_gym.data.imports import Progress, import_episodes, padded_actions, resized_frames, state_of, vectors

STATE = "observation.state"
_SUCCESS = "next.success"


def import_lerobot(
    source: str | Path,
    folder: str | Path,
    task: str | None = None,
    camera: str | None = None,
    state: str = STATE,
    progress: Progress | None = None,
) -> Dataset:
    """Returns the dataset made from a LeRobot dataset. Like a collection, it resumes.

    The bounds of actions are the smallest and largest that were recorded.

    Args:
        source: LeRobot's folder of it, with `meta/info.json`.
        folder: Where to.
        task: Name to record; None is "lerobot:" and the folder's name.
        camera: Feature to take the pictures from; None is the only one, or the one that we export.
        state: Feature to take as the state.
        progress: Called after every episode.

    Raises:
        ValueError: If it is no LeRobot dataset of a known version, or without pictures or actions.
    """
    robot, source = LeRobotFolder(Path(source)), Path(source)
    camera = robot.choose_camera(camera)
    low, high = robot.action_bounds()
    name = source.resolve().name
    task = task or f"lerobot:{name}"
    header = Header(
        task=task,
        policy=f"imported from LeRobot {name} ({robot.version}, {robot.info.get('fps')} fps, {camera})",
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
        ValueError: If it is none, or of an unknown version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.info: dict[str, Any] = json.loads((folder / "meta" / "info.json").read_text())
            self.version = str(self.info["codebase_version"])
            self.features: dict[str, Any] = self.info["features"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder} is not a LeRobot dataset, it needs meta/info.json ({error})") from None
        if not self.version.startswith(("v2.", "v3.")):
            raise ValueError(f"{folder} is a LeRobot dataset of {self.version}; v2.0, v2.1 and v3.0 can be read")
        if "action" not in self.features:
            raise ValueError(f"{folder} has no actions; its features: {', '.join(self.features)}")
        self._is_v3 = self.version.startswith("v3.")
        try:
            self.episodes = self._episodes_v3() if self._is_v3 else self._episodes_v2()
        except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
            raise ValueError(f"{folder}: its list of episodes cannot be read ({error}): copy it anew") from None
        self._table = lru_cache(maxsize=2)(pq.read_table)

    def _episodes_v2(self) -> list[dict[str, Any]]:
        lines = (self.folder / "meta" / "episodes.jsonl").read_text().splitlines()
        return sorted((json.loads(line) for line in lines if line), key=lambda row: row["episode_index"])

    def _episodes_v3(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in sorted((self.folder / "meta" / "episodes").glob("*/*.parquet")):
            names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
            rows += pq.read_table(path, columns=names).to_pylist()
        return sorted(rows, key=lambda row: row["episode_index"])

    def choose_camera(self, wanted: str | None) -> str:
        """Returns the feature to take pictures from.

        Raises:
            ValueError: If there is none, or more than one and none is chosen.
        """
        cameras = [name for name, feature in self.features.items() if feature["dtype"] in ("image", "video")]
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
            raise ValueError(f"{self.folder} has no data/*/*.parquet: copy it anew")
        extremes = []
        for path in paths:
            actions = _matrix(pq.read_table(path, columns=["action"]).column("action"))
            extremes.append((actions.min(0), actions.max(0)))
        low, high = (np.stack(values).astype(np.float32) for values in zip(*extremes, strict=True))
        return low.min(0).tolist(), high.max(0).tolist()

    def read(self, number: int, camera: str, state: str) -> Episode:
        """Returns an episode.

        Raises:
            ValueError: If its files are missing, damaged, or of another length.
        """
        row = self.episodes[number]
        path = self._data_path(row)
        try:
            table = self._table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path} cannot be read ({error}): copy it anew") from None
        table = table.filter(pc.equal(table.column("episode_index"), row["episode_index"]))
        length = int(row["length"])
        if table.num_rows != length:
            raise ValueError(f"{path} has {table.num_rows} of its {length} rows: copy it anew")
        columns = {
            name: _matrix(table.column(name))
            for name in table.column_names
            if name == state or name == "next.reward" or (name.startswith("observation.") and name != camera)
            if self.features.get(name, {}).get("dtype") not in ("image", "video", "string")
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

    def _data_path(self, row: dict[str, Any]) -> Path:
        if self._is_v3:
            place = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        else:
            place = self._place_v2(row)
        return self.folder / str(self.info["data_path"]).format(**place)

    def _place_v2(self, row: dict[str, Any]) -> dict[str, int]:
        number = int(row["episode_index"])
        return {"episode_chunk": number // int(self.info.get("chunks_size", 1000)), "episode_index": number}

    def _pictures(self, row: dict[str, Any], table: pa.Table, camera: str) -> NDArray[np.uint8]:
        if self.features[camera]["dtype"] == "image":
            return resized_frames(_same_size([self._picture(cell) for cell in table.column(camera).to_pylist()]))
        start = 0.0
        if self._is_v3:
            of = f"videos/{camera}/"
            place = {"chunk_index": row[of + "chunk_index"], "file_index": row[of + "file_index"]}
            start = float(row[of + "from_timestamp"])
        else:
            place = self._place_v2(row)
        path = self.folder / str(self.info["video_path"]).format(video_key=camera, **place)
        return read_video(path, start, table.num_rows, float(self.info["fps"]))

    def _picture(self, cell: Any) -> NDArray[np.uint8]:
        from PIL import Image

        source: Any = io.BytesIO(cell["bytes"]) if cell.get("bytes") else self.folder / cell["path"]
        with Image.open(source) as picture:
            return np.asarray(picture.convert("RGB"))


def read_video(path: Path, start_s: float, count: int, fps: float) -> NDArray[np.uint8]:
    """Returns frames of a video scaled to (count, 224, 224, 3) uint8.

    Args:
        path: The video.
        start_s: Time of the first frame wanted.
        count: How many.
        fps: Frames per second.

    Raises:
        ValueError: If the video is missing, damaged or too short.
    """
    import imageio_ffmpeg

    if not path.is_file():
        raise ValueError(f"the video {path} is missing: copy it anew")
    height, width, channels = FRAME_SHAPE
    # half a frame early: times are rounded, and the first frame at or after the time is taken
    seek = [] if start_s == 0.0 else ["-ss", f"{max(start_s - 0.5 / fps, 0.0):.6f}"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-threads", "1", *seek, "-i", str(path)]
    command += ["-frames:v", str(count), "-fps_mode", "passthrough", "-vf", f"scale={width}:{height}:flags=area"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=False)
    frames = len(done.stdout) // (height * width * channels)
    if done.returncode or frames != count:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"{frames} of {count} frames"]
        raise ValueError(f"the video {path} cannot be read ({reason[0]}): copy it anew")
    return np.frombuffer(done.stdout, np.uint8).reshape(count, *FRAME_SHAPE)


def _same_size(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    if len({picture.shape for picture in pictures}) > 1:
        raise ValueError("its pictures differ in size")
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
