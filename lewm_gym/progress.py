"""Progress bars for command lines, with the time left; libraries report through callbacks and stay silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lewm_gym.cli import raise_if_interrupted


class Bars:
    """A progress bar on standard error per stage; use it in a `with` statement and call it as work gets done."""

    def __init__(self, disable: bool = False) -> None:
        self._bar: Any = None
        self._disable = disable

    def __enter__(self) -> Bars:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last bar where it stands."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage: str, done: int, total: int, unit: str = "it", note: str = "") -> None:
        """Moves the bar of `stage` to `done` of `total`, in `unit`s, with a `note` behind it."""
        raise_if_interrupted()
        if self._disable:
            return
        if self._bar is None or self._bar.desc != stage:
            if self._bar is not None:
                self._bar.close()
            from tqdm import tqdm

            # What was done before this call must not count as speed: hence initial.
            self._bar = tqdm(
                desc=stage, initial=max(done - 1, 0), total=total, unit=unit, smoothing=0.05, disable=self._disable
            )
        self._bar.total = total
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def of(self, stage: str, unit: str) -> Callable[[int, int], None]:
        """Returns a callback (done, total) that moves the bar of `stage`."""
        return lambda done, total: self(stage, done, total, unit)

    def on_load(self, ready: int, total: int) -> None:
        """Shows episodes whose frames are averaged down."""
        self("load", ready, total, "episode")

    def on_episodes(self, stage: str, done: int, total: int) -> None:
        """Shows episodes of an evaluation."""
        self(stage, done, total, "episode")

    def on_log(self, done: int, total: int, latest: dict[str, float]) -> None:
        """Shows training steps and the latest losses."""
        shown = ("loss", "prediction", "sigreg")
        self("train", done, total, "step", ", ".join(f"{k} {latest[k]:.3g}" for k in shown if k in latest))

    def on_collect(self, episodes: int, frames: int, total: int) -> None:
        """Shows episodes collected, and frames per second."""
        seconds = max(self._bar.format_dict["elapsed"], 1e-3) if self._bar is not None else None
        self("collect", episodes, total, "episode", f"{frames / seconds:,.0f} frames/s" if seconds else "")
