"""A contact sheet and a film of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lewm_gym.data import Dataset
from lewm_gym.files import atomic_file, atomic_path, is_whole

SHEET_NAME = "contact_sheet.png"
FILM_NAME = "film.mp4"
FPS = 10  # environment steps per second


def draw_pictures(dataset: Dataset, redraw: bool = True) -> None:
    """Writes `contact_sheet.png` and `film.mp4` into the dataset's folder, if missing, incomplete or `redraw`."""
    sheet, film = dataset.folder / SHEET_NAME, dataset.folder / FILM_NAME
    if redraw or not is_whole(sheet):
        _write_sheet(sheet, contact_sheet(dataset))
    if redraw or not is_whole(film):
        _write_film(film, film_frames(dataset), FPS / dataset.picture_every)


def contact_sheet(dataset: Dataset, rows: int = 6, columns: int = 8) -> NDArray[np.uint8]:
    """Returns an image of (rows x 112, columns x 112, 3): a row per episode, time from left to right."""
    strips = []
    for index in _spread(dataset.n_episodes, rows):
        stored = dataset.picture_steps(index)
        steps = stored[np.linspace(0, len(stored) - 1, columns).round().astype(int)]
        small = dataset.frames(index, steps)[:, ::2, ::2].copy()
        small[:, :, -1] = small[:, -1] = 128  # a thin line between images
        strips.append(np.concatenate(list(small), axis=1))
    return np.concatenate(strips, axis=0)


def film_frames(dataset: Dataset, episodes: int = 3) -> NDArray[np.uint8]:
    """Returns the stored frames of some episodes side by side, (K, 224, episodes x 224, 3), padded."""
    indices = _spread(dataset.n_episodes, episodes)
    stored = [dataset.picture_steps(index) for index in indices]
    length = max(map(len, stored))
    films = [
        dataset.frames(i, s[np.minimum(np.arange(length), len(s) - 1)]) for i, s in zip(indices, stored, strict=True)
    ]
    return np.concatenate(films, axis=2)


def _spread(count: int, wanted: int) -> list[int]:
    return sorted(set(np.linspace(0, count - 1, min(wanted, count)).astype(int).tolist()))


def _write_sheet(path: Path, picture: NDArray[np.uint8]) -> None:
    from PIL import Image

    with atomic_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def _write_film(path: Path, frames: NDArray[np.uint8], fps: float) -> None:
    import imageio.v2 as imageio

    with atomic_path(path) as temporary:
        imageio.mimwrite(temporary, list(frames), fps=fps, codec="libx264", quality=8, macro_block_size=16)  # type: ignore[arg-type]
