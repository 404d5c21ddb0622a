"""Rendering the frames of a states-only dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from collect.collector import fill
from collect.episodes import check_picture_every, make_env
from lewm_gym.data import Dataset
from lewm_gym.data.codec import EncodedEpisode, EpisodeEncoder, FrameCodec, codec_for
from lewm_gym.data.format.header import Header, installed_versions
from lewm_gym.data.writer import open_writer, save_episode
from lewm_gym.provenance import usable_cores


class Renderer:
    """Renders the recorded states of a dataset; an alternative to `EpisodeRunner`.

    Args:
        header: Of the dataset to make.
        source: Folder of the states.
    """

    def __init__(self, header: Header, source: Path) -> None:
        self._dataset = Dataset.open(source)
        self._index = {int(number): i for i, number in enumerate(self._dataset.episode_numbers)}
        self._env = make_env(header.task, header.render_quality)
        drawn_by = getattr(self._env, "gl_renderer", None)
        self._header = header.with_columns(header.columns, installed_versions(), drawn_by)

    def save(self, folder: Path, number: int) -> int:
        """Renders an episode and writes it as a part of the dataset; returns its number of frames."""
        episode = self._dataset.episode(self._index[number])
        assert self._header.codec is not None
        encoder = EpisodeEncoder(FrameCodec.from_json(self._header.codec))
        options = {"state": episode.state[0], "goal_state": episode.state[-1], **episode.reset_options}
        self._env.reset(options=options)
        for state in episode.state[:: self._header.picture_every]:
            encoder.add(self._env.render_state(state))  # type: ignore[attr-defined]
        episode = replace(episode, picture_every=self._header.picture_every)
        save_episode(folder, self._header, number, EncodedEpisode(episode, encoder.finish()))
        return len(episode)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()


def render(
    source: str | Path,
    folder: str | Path,
    workers: int | None = None,
    picture_every: int = 1,
    progress: Callable[[int, int, int], None] | None = None,
) -> Dataset:
    """Returns the full dataset of a states-only one; the same pixels as if it had been collected with frames.

    Like `collect`, it resumes and extends.

    Args:
        source: Folder of the states.
        folder: Output folder.
        workers: Processes; None: one per CPU core.
        picture_every: N: render frames 0, N, 2N, ... of each episode only.
        progress: As in `collect`.

    Raises:
        FileNotFoundError: If there is no dataset in `source`.
        ValueError: If `folder` holds another dataset.
    """
    source, folder = Path(source), Path(folder)
    workers = usable_cores() if workers is None else workers
    check_picture_every(picture_every)
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    states = Dataset.open(source)
    if folder.resolve() == source.resolve():
        raise ValueError(f"cannot render into the folder of the states ({folder}): choose another one")
    header = replace(
        states.header, states_only=False, codec=codec_for(states.task).as_json(), picture_every=picture_every
    )
    with open_writer(folder, header, states.episode_numbers.tolist()) as writer:
        changed = bool(writer.missing)
        fill(writer, partial(Renderer, header, states.folder), workers, progress)
        writer.close()
    from collect.pictures import draw_pictures

    dataset = Dataset.open(folder)
    draw_pictures(dataset, redraw=changed)
    return dataset
