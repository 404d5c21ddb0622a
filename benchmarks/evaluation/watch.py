"""`watch AGENT`: films an agent on held-out pairs, or plays it in a window; one that ships is called by its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agents import load_agent
from agents.pretrained import locate
from benchmarks.evaluation import film as films
from benchmarks.evaluation.evaluate import record
from benchmarks.evaluation.protocols import Asked, make_job
from benchmarks.evaluation.run import counter
from benchmarks.evaluation.runs import load_description
from benchmarks.options import OnDevice
from lewm_gym.commands import argument, option
from lewm_gym.progress import Bars


@dataclass(frozen=True, kw_only=True)
class Watch(OnDevice):
    """Records a film of an agent on held-out pairs: a pretrained agent, or the agent of a run folder."""

    agent: str = argument("a pretrained agent (two_room, pusht, cube, ...), a run folder, or user/name on the Hub")
    n_pairs: int = option(4, "number of pairs, from the first: one episode each", least=1, most=200)
    seed: int = option(0, "planner seed", least=0)
    out: Path | None = option(None, "film (.mp4); a .png is written beside it (default: runs/films/<agent>.mp4)")
    window: bool = option(False, "also play the film in a window; Escape closes it")

    def __call__(self) -> int:
        """Films, and says how the episodes ended."""
        run = locate(self.agent)
        description = load_description(run)
        job = make_job(run, description, Asked(n_pairs=self.n_pairs, seed=self.seed, n_envs=4, workers=1))
        agent = load_agent(run, device=self.device)
        out = Path("runs/films", f"{run.resolve().name}.mp4") if self.out is None else self.out
        with Bars() as bars:
            advance = counter(bars.on_episodes, "film", self.n_pairs + 1)  # the last one is the encoding
            chosen = range(self.n_pairs)
            episodes = record(agent, job.task, job.pairs, chosen, job.settings, rules=job.rules, progress=advance)
            films.write_film(out, episodes, job.task)
            advance()
        reached = sum(episode.outcome is not None and episode.outcome.success for episode in episodes)
        print(f"{job.task.title}: {reached} of {len(episodes)} goals reached, {out}")
        if self.window:
            _play(films.film_frames(episodes, job.task.title), job.task.title)
        return 0


def _play(frames: list[films.Frame], title: str) -> None:
    """Shows frames in a window, once."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import pygame

    height, width, _ = frames[0].shape
    pygame.init()
    try:
        screen, clock = pygame.display.set_mode((width, height)), pygame.time.Clock()
        pygame.display.set_caption(title)
        for frame in frames:
            for event in pygame.event.get():
                if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                    return
            screen.blit(pygame.image.frombuffer(frame.tobytes(), (width, height), "RGB"), (0, 0))
            pygame.display.flip()
            clock.tick(films.FPS)
    finally:
        pygame.quit()
