"""The site's and the README's moving pictures, from films of stored evaluations: `python docs/moving_pictures.py`.

For each task the film of the best stored result on 200 held-out pairs (`python -m benchmarks plan RUN --film`) becomes
`images/<task>.webp`, and all four together `images/tasks.webp`: the agent, and beside it the picture of its goal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pages
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from lewm_gym.tasks import TASKS, Task

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results"
#: Where a film shows the agent and its goal: left, upper, right, lower, px (`VIEW`, `GAP` and `HEAD` of the films).
AGENT, GOAL = (16, 48, 336, 368), (352, 48, 672, 368)
SIDE = 144  # px of a view
GAP = 6
HEAD = 20
FPS = 10
SECONDS = 9
QUALITY = 60


def best_film(task: Task) -> Path | None:
    """Returns the film of a task's best stored result on 200 held-out pairs, None if none was filmed."""
    films = (RESULTS / f"{found['name']}.mp4" for found in pages.evaluations(task, RESULTS))
    return next((film for film in films if film.is_file()), None)


def views(film: Path) -> list[NDArray[np.uint8]]:
    """Returns the frames of a film, (SIDE, 2 SIDE + GAP, 3) uint8: the agent and its goal."""
    frames = []
    for frame in imageio.imiter(film):
        picture = Image.new("RGB", (2 * SIDE + GAP, SIDE), "white")
        for place, box in ((0, AGENT), (SIDE + GAP, GOAL)):
            view = Image.fromarray(frame).crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.paste(view, (place, 0))
        frames.append(np.asarray(picture))
        if len(frames) == SECONDS * FPS:
            break
    return frames


def titled(title: str, frames: list[NDArray[np.uint8]]) -> list[Image.Image]:
    """Returns frames with a title above; the last one is held until the film's time is over."""
    made = []
    font: Any = ImageFont.load_default(13)
    for number in range(SECONDS * FPS):
        frame = frames[min(number, len(frames) - 1)]
        picture = Image.new("RGB", (frame.shape[1], frame.shape[0] + HEAD), "white")
        picture.paste(Image.fromarray(frame), (0, HEAD))
        draw = ImageDraw.Draw(picture)
        draw.text((2, 2), f"{title}: agent", "black", font)
        draw.text((SIDE + GAP + 2, 2), "goal", "black", font)
        made.append(picture)
    return made


def save(path: Path, frames: list[Image.Image]) -> None:
    """Writes an animated WebP that repeats for ever."""
    options: dict[str, Any] = {"duration": 1000 // FPS, "loop": 0, "quality": QUALITY, "method": 4}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    """Writes the pictures of the tasks that have a film, and the one of all of them."""
    shown = []
    for task in TASKS.values():
        if film := best_film(task):
            frames = titled(task.title, views(film))
            save(DOCS / "images" / f"{task.name}.webp", frames)
            shown.append(frames)
    if not shown:
        raise SystemExit("error: no result in results/ has a film; make one with: python -m benchmarks plan RUN --film")
    width, height = shown[0][0].size
    together = []
    for moment in zip(*shown, strict=True):
        picture = Image.new("RGB", (2 * width + 3 * GAP, -(-len(shown) // 2) * (height + GAP)), "white")
        for number, frame in enumerate(moment):
            picture.paste(frame, (number % 2 * (width + 3 * GAP), number // 2 * (height + GAP)))
        together.append(picture)
    save(DOCS / "images" / "tasks.webp", together)


if __name__ == "__main__":
    main()
