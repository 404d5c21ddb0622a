"""What a machine without a network needs for `make gpu`, in one archive: `make bundle`.

    bundle.tar.gz   lewm-gym/ (the committed source), wheels/, data/<task>-states/
    bundle.sh       unpacks it, makes an environment over the machine's own torch, and runs `python -m benchmarks gpu`

torch's builds for GPUs alone are larger than the archive may be: the machine must have one, and what else it has is
named by `--without`. Datasets travel as states, and are rendered there.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.options import OnTasks
from lewm_gym.commands import option
from lewm_gym.data.dataset import Dataset
from lewm_gym.files import atomic_file, atomic_path, make_folder
from lewm_gym.tasks import get_task

ROOT = Path(__file__).parents[2]
#: Of the committed source, what running needs not.
LEFT_OUT = (":!results", ":!docs", ":!.github", ":!.ci", ":!agents/shipped")
#: Too large, or what `gpu` does not do: films, tests against other packages, the policy that collects Reacher.
NEVER = ("torch", "labmaze", "transformers", "stable-baselines3", "imageio", "imageio-ffmpeg")
GLIBC = (28, 27, 24, 17, 12, 5)  # of manylinux wheels; pip matches each by itself
MEGABYTE = 1_000_000

SCRIPT = """#!/bin/sh
# Unpacks {archive} here, installs its wheels over this machine's torch, and measures: sh {script} --minutes 8
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${{PYTHON:-python3}}
there="$("$python" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())')"
refuse() {{ echo "error: $1" >&2; exit 2; }}
[ "$there" = "{python} {machine}" ] ||
    refuse "this bundle is for Python {python} on {machine}, here is $there: set PYTHON, or bundle again"
"$python" -c 'import torch' || refuse "this machine's Python has no torch: install the build for its GPU"
cd "$here"
[ -d lewm-gym ] || {{ rm -rf .unpacking; mkdir .unpacking; tar -xzf {archive} -C .unpacking; mv .unpacking/* .; }}
"$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target site wheels/*.whl
PYTHONPATH="$here/lewm-gym:$here/site${{PYTHONPATH:+:$PYTHONPATH}}" exec "$python" -m benchmarks gpu --data data \\
    --tasks {tasks} "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Bundle(OnTasks):
    """Packs the committed source, wheels for a named Python, and datasets of states into one archive, with a script
    that unpacks it and runs `benchmarks gpu` on a machine without a network. That machine needs torch.
    """  # noqa: D205

    out: Path = option(Path("dist/bundle.tar.gz"), "archive; the script is beside it (.sh)")
    python: str = option("3.12", "version of Python there", metavar="X.Y")
    machine: str = option("x86_64", "its processors", choices=("x86_64", "aarch64"))
    data: tuple[Path, ...] = option((), "datasets of states, as of `python -m collect TASK --states-only`")
    without: tuple[str, ...] = option((), "packages that the machine has, besides torch")
    most_mb: float = option(60.0, "largest archive (MB)", least=0.001)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.out.name.endswith(".tar.gz"):
            raise ValueError(f"--out must end in .tar.gz, got {self.out}")
        if not re.fullmatch(r"3\.\d+", self.python):
            raise ValueError(f"--python is a version such as 3.12, got {self.python!r}")

    def __call__(self) -> int:
        """Packs, and says how large it is."""
        size = self.pack()
        print(f"{self.out}: {size / MEGABYTE:.1f} MB; copy it with {self.script.name}, then: sh {self.script.name}")
        return 0

    @property
    def script(self) -> Path:
        """The script beside the archive."""
        return self.out.with_name(self.out.name.removesuffix(".tar.gz") + ".sh")

    def pack(self) -> int:
        """Returns the size of the archive, bytes.

        Raises:
            ValueError: If a dataset holds more than states, a wheel cannot be had, or the archive is too large: then
                there is none.
        """
        for folder in self.data:
            if Dataset.open(folder).has_pixels:
                raise ValueError(f"{folder} holds frames, too large to travel: collect it with --states-only")
        make_folder(self.out.parent)
        with tempfile.TemporaryDirectory() as name:
            wheels = Path(name, "wheels")
            wheels.mkdir()
            extras = {get_task(task).extra for task in self.tasks} - {None}
            wanted = needed(("test", *sorted(map(str, extras))), self.python, self.machine, (*NEVER, *self.without))
            download(wanted, wheels, self.python, self.machine)
            source = Path(name, "source.tar")
            _git("archive", "--format=tar", "--prefix=lewm-gym/", f"--output={source}", "HEAD", "--", ".", *LEFT_OUT)
            with tarfile.open(source) as tar:
                tar.extractall(name, filter="data")
            with atomic_path(self.out) as temporary:
                with tarfile.open(temporary, "w:gz") as tar:
                    for part in ("lewm-gym", "wheels"):
                        tar.add(Path(name, part), part)
                    for folder in self.data:
                        tar.add(folder, f"data/{folder.resolve().name}", filter=_no_pictures)
                size = temporary.stat().st_size
                if size > self.most_mb * MEGABYTE:
                    largest = sorted(wheels.iterdir(), key=lambda path: -path.stat().st_size)[:5]
                    listed = ", ".join(f"{p.name.split('-')[0]} {p.stat().st_size / MEGABYTE:.0f}" for p in largest)
                    raise ValueError(
                        f"the bundle takes {size / MEGABYTE:.0f} MB, at most {self.most_mb:g} are allowed; the largest "
                        f"wheels (MB): {listed}; name those that the machine has by --without"
                    )
        names = {"tasks": shlex.join(self.tasks), "archive": self.out.name, "script": self.script.name}
        with atomic_file(self.script) as file:
            file.write(SCRIPT.format(**names, python=self.python, machine=self.machine).encode())
        return size


def needed(extras: Sequence[str], python: str, machine: str, without: Sequence[str]) -> list[str]:
    """Returns what the package and all that it requires needs on Linux, as `NAME==VERSION` of those installed here.

    Args:
        extras: Of the package.
        python: Version there, X.Y.
        machine: Its processors.
        without: Left out, with what they alone require.

    Raises:
        ImportError: Without `packaging`.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    there = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    there |= {"platform_system": "Linux", "platform_machine": machine, "os_name": "posix"}
    skipped = {canonicalize_name(name) for name in without}
    found: dict[str, str] = {}
    waiting = [("", tuple(extras))]  # this package, as its source says: what is installed may be older
    seen = set()
    while waiting:
        name, asked = waiting.pop()
        if (name, asked) in seen:
            continue
        seen.add((name, asked))
        for requirement in map(Requirement, _required(name, asked)):
            marker, key = requirement.marker, canonicalize_name(requirement.name)
            wanted = marker is None or any(marker.evaluate({**there, "extra": extra}) for extra in (*asked, ""))
            if wanted and key not in skipped and key != "lewm-gym":
                found[key] = _pinned(requirement.name, str(requirement.specifier))
                waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return sorted(found.values(), key=str.lower)


def _required(name: str, extras: Sequence[str]) -> list[str]:
    """Returns the requirements of an installed package, or of this one and its extras if there is no name."""
    if name:
        try:
            return importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # only that Python needs it: pip says if there is none
            return []
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    texts = [parser["options"]["install_requires"], *(parser["options.extras_require"][extra] for extra in extras)]
    lines = [line.partition("#")[0].strip() for text in texts for line in text.splitlines()]
    return [line for line in lines if line]


def _pinned(name: str, specifier: str) -> str:
    try:
        return f"{name}=={importlib.metadata.version(name)}".split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return f"{name}{specifier}"


def download(requirements: Sequence[str], folder: Path, python: str, machine: str) -> None:
    """Fetches the wheels of requirements, none of what they require.

    Raises:
        ValueError: If there is no wheel of one for that machine.
    """
    platforms = [word for glibc in GLIBC for word in ("--platform", f"manylinux_2_{glibc}_{machine}")]
    platforms += ["--platform", f"manylinux2014_{machine}", "--platform", f"linux_{machine}"]
    options = ["-q", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command = [sys.executable, "-m", "pip", "download", *options, *platforms, "-d", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        said = errors[-1] if errors else shlex.join(command)
        raise ValueError(f"a wheel for Python {python} on {machine} cannot be had: {said}")


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the source is packed from a git checkout: {done.stderr.strip() or 'git failed'}")


def _no_pictures(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Returns an entry of a dataset, None for pictures beside it and locks."""
    return None if entry.name.endswith((".png", ".mp4", ".lock")) else entry
