"""Films: what the agent sees beside what it should reach, as mp4 and as a still contact sheet."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lewm_gym.files import atomic_path, make_folder
from lewm_gym.results import Outcome
from lewm_gym.tasks import Task, get_task

Frame = NDArray[np.uint8]

FPS = 10  # environment steps shown per second
HOLD_FRAMES = 5  # the last frame stays for half a second
VIEW = 320  # px, a view in the film
GAP = 16  # px between and around the views; all sizes are multiples of 16, as video encoders like them
HEAD = 48  # px above the views
STILL_VIEW = 192  # px, a view in the contact sheet

PAPER = (250, 250, 249)
INK = (28, 25, 23)
QUIET = (120, 113, 108)
RUNNING = (168, 162, 158)
SUCCESS = (22, 163, 74)
FAILURE = (220, 38, 38)


@dataclass
class Episode:
    """One filmed attempt: `frames` are (h, w, 3) uint8, the first before any action."""

    pair: int
    goal: Frame
    frames: list[Frame] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def label(self) -> str:
        """Returns how it ended, in words."""
        if self.outcome is None or not self.outcome.success:
            return f"not reached in {len(self.frames) - 1} steps"
        return f"reached after {self.outcome.steps} steps"

    @property
    def colour(self) -> tuple[int, int, int]:
        """Returns the frame's colour at the end."""
        return SUCCESS if self.outcome is not None and self.outcome.success else FAILURE


def choose(outcomes: Sequence[Outcome], count: int = 6) -> list[int]:
    """Returns pairs to film: the first by index, with up to a third of the places for the first failures.

    The rule looks at nothing but success and index, so that nobody picks the pretty ones.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.pair)
    failed = [outcome.pair for outcome in ordered if not outcome.success]
    solved = [outcome.pair for outcome in ordered if outcome.success]
    n_failed = min(len(failed), max(count // 3, count - len(solved)))
    return sorted(solved[: count - n_failed] + failed[:n_failed])


def film_frames(episodes: Sequence[Episode], title: str) -> list[Frame]:
    """Returns the film's frames, (HEAD + VIEW + GAP, 2 VIEW + 3 GAP, 3) uint8: each episode's and the held last one."""
    frames = []
    for number, episode in enumerate(episodes, 1):
        last = len(episode.frames) - 1
        for step, pixels in enumerate(episode.frames):
            text, colour = (episode.label, episode.colour) if step == last else (f"step {step}", RUNNING)
            frame = _compose(pixels, episode.goal, f"{title}  {number}/{len(episodes)}", text, colour)
            frames += [frame] * (1 + HOLD_FRAMES if step == last else 1)
    return frames


def write_film(path: str | Path, episodes: Sequence[Episode], task: Task | str) -> Path:
    """Writes an mp4 (H.264) and the contact sheet beside it (`.png`); returns the path of the film.

    Raises:
        ImportError: Without imageio-ffmpeg.
        ValueError: Without episodes.
        OSError: If the film cannot be written.
    """
    path = Path(path)
    if not episodes:
        raise ValueError("no episodes to film")
    title = (get_task(task) if isinstance(task, str) else task).title
    make_folder(path.parent)
    _encode(path, film_frames(episodes, title))
    with atomic_path(path.with_suffix(".png")) as temporary:
        contact_sheet(episodes, title).save(temporary, format="PNG", optimize=True)
    return path


def _encode(path: Path, frames: Sequence[Frame]) -> None:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise ImportError("films need imageio-ffmpeg; install it with: pip install imageio-ffmpeg") from None
    height, width, _ = frames[0].shape
    form: dict[str, Any] = {"codec": "libx264", "pix_fmt_out": "yuv420p", "quality": None}  # what every browser decodes
    form["output_params"] = ["-crf", "20", "-preset", "slow", "-threads", "1", "-movflags", "+faststart"]
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(str(temporary), (width, height), fps=FPS, ffmpeg_log_level="error", **form)
        with contextlib.closing(writer):
            writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(frame))


def contact_sheet(episodes: Sequence[Episode], title: str) -> Image.Image:
    """Returns a still of the same film: a row per episode with its start, middle, end and goal."""
    columns = ("start", "middle", "end", "goal")
    side, gap, foot, top = STILL_VIEW, GAP // 2, 24, 56
    width = len(columns) * (side + gap) + gap
    sheet = Image.new("RGB", (width, top + len(episodes) * (side + foot + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 6), title, INK, _font(17))
    for column, name in enumerate(columns):
        draw.text((gap + column * (side + gap), 32), name, QUIET, _font(14))
    for number, episode in enumerate(episodes):
        y, frames = top + number * (side + foot + gap), episode.frames
        pictures = (frames[0], frames[(len(frames) - 1) // 2], frames[-1], episode.goal)
        for column, pixels in enumerate(pictures):
            colour = episode.colour if columns[column] == "end" else RUNNING
            _place(sheet, pixels, (gap + column * (side + gap), y), side, colour, border=3)
        draw.text((gap, y + side + 4), f"pair {episode.pair}: {episode.label}", episode.colour, _font(14))
    return sheet


def _compose(view: Frame, goal: Frame, heading: str, text: str, colour: tuple[int, int, int]) -> Frame:
    frame = Image.new("RGB", (2 * VIEW + 3 * GAP, HEAD + VIEW + GAP), PAPER)
    draw, x_goal = ImageDraw.Draw(frame), 2 * GAP + VIEW
    _place(frame, view, (GAP, HEAD), VIEW, colour, border=6)
    _place(frame, goal, (x_goal, HEAD), VIEW, RUNNING, border=1)
    draw.text((GAP, 13), f"agent: {text}", INK if colour == RUNNING else colour, _font(18))
    draw.text((x_goal, 13), "goal", INK, _font(18))
    draw.text((2 * GAP + 2 * VIEW, 15), heading, QUIET, _font(15), anchor="ra")
    return np.asarray(frame)


def _place(
    sheet: Image.Image, pixels: Frame, at: tuple[int, int], side: int, colour: tuple[int, int, int], border: int
) -> None:
    """Draws a view, enlarged to `side` px, with a border around it."""
    picture, (x, y) = Image.fromarray(pixels), at
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    ImageDraw.Draw(sheet).rectangle((x - border, y - border, x + side + border - 1, y + side + border - 1), colour)
    sheet.paste(picture, at)


@lru_cache(maxsize=8)
def _font(size: int) -> Any:
    return ImageFont.load_default(size)  # Pillow's own, so that a film looks the same on every machine
