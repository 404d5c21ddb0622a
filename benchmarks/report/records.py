"""What every command that measures shares: options of one name and one meaning, a record, and how it is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.registry import COMMANDS, load_command
from benchmarks.report.tables import Section
from lewm_gym.commands import Command, option
from lewm_gym.files import exclusive, make_folder, remove_stale
from lewm_gym.progress import Bars
from lewm_gym.results import Clock, Json, Record, partial_of


@dataclass(frozen=True, kw_only=True)
class Measurement(Command):
    """A command that writes one record and a drawing beside it, and prints what the page shows of it.

    `kind` is the command's name in COMMANDS, and the kind of its records. Only what `is_shared` may several processes
    measure at once: they divide its trainings (`benchmarks.experiments.trial.share`).
    """

    kind: ClassVar[str]
    is_shared: ClassVar[bool] = False

    out: Path | None = option(
        None, "record file, JSON; plots are written beside it (default: results/<command>-<input>.json)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.suffix != ".json":
            raise ValueError(f"--out must end in .json, got {self.out}; other files go beside it")

    @property
    def inputs(self) -> Sequence[Path]:
        """What is measured: names the record; nothing but its kind where no run is."""
        run = getattr(self, "run", None)
        return getattr(self, "runs", None) or ([] if run is None else [run])

    @property
    def path(self) -> Path:
        """Where the record goes, e.g. `results/probe-two_room-lewm-0.json`."""
        names = "+".join(path.resolve().name for path in self.inputs)
        return self.out or Path("results", "-".join(filter(None, (self.kind.replace(" ", "-"), names))) + ".json")

    def measure(self, bars: Any) -> Json:
        """Returns the body of the record; `bars` shows progress, called with (stage, done, total)."""
        raise NotImplementedError(f"{type(self).__name__} measures nothing")

    @staticmethod
    def show(record: Record) -> Section:
        """Returns what the page shows of a record."""
        raise NotImplementedError("there is nothing to show")

    def save(self, body: Json, clock: Clock) -> Record:
        """Writes what was measured since the clock began."""
        return Record.made(self.kind, body, clock).save(self.path)

    def record(self, bars: Any = None, **given: Any) -> Record:
        """Measures, writes the record with its first drawing, and returns it; `given` is handed to `measure`.

        Raises:
            ValueError: If another process measures the same, or something does not fit.
        """
        clock = Clock()
        make_folder(self.path.parent)
        picture = self.path.with_suffix(".png")
        with contextlib.nullcontext() if self.is_shared else exclusive(self.path):
            if not self.is_shared:
                remove_stale(picture)
            record = self.save(self.measure(bars or Bars(disable=True), **given), clock)
            for figure in self.show(record).figures[:1]:
                figure.save(picture)
            partial_of(self.path).unlink(missing_ok=True)
        return record

    def __call__(self) -> int:
        """Measures with progress bars, and prints what was found."""
        with Bars() as bars:
            record = self.record(bars)
        print(f"{self.show(record).text()}\n\n{self.path} ({record.head['seconds']:.0f} s)")
        return 0


def section_of(record: Record) -> Section:
    """Returns what the page shows of a record.

    Raises:
        ValueError: If no command leaves such records, or it lacks what is shown.
    """
    if record.kind not in COMMANDS or COMMANDS[record.kind].part is None:
        raise ValueError(f"{record.path} holds a record of {record.kind!r}, which no command here leaves")
    with naming(record):
        section: Section = load_command(record.kind).show(record)
    return section


@contextlib.contextmanager
def naming(record: Record) -> Iterator[None]:
    """Names the record in the error if something in it cannot be shown."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise ValueError(
            f"{record.path} is damaged or of another version ({error!r}): run the benchmark again"
        ) from None
