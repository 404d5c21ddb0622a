"""No command line and no file, however odd, ends in a traceback or in a line that does not help.

    make fuzz N=5000 SEED=7

What is drawn depends on the seed and its number alone; a fault names both.
"""

from __future__ import annotations

import collections
import importlib.util
import os
import shutil
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import tiny
from test_data import write
from test_report import MADE, RECORDS
from test_results import make_result

from benchmarks.report.build import write_report
from lewm_gym import checkpoint, training
from lewm_gym.data import Dataset
from lewm_gym.data.foreign.hdf5 import export_hdf5, import_hdf5
from lewm_gym.data.foreign.lerobot import import_lerobot
from lewm_gym.data.foreign.lerobot_export import export_lerobot
from lewm_gym.data.foreign.minari import export_minari, import_minari
from lewm_gym.data.verify import verify
from lewm_gym.pairs import PairSet, load_shipped
from lewm_gym.results import Record, Result

N = int(os.environ.get("FUZZ_N", 300))
SEED = int(os.environ.get("FUZZ_SEED", 0))
PARTS = 6  # that run beside one another


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """A folder with one of everything: a dataset, a run, a result, pairs; and with what is none of them."""
    folder = tmp_path_factory.mktemp("pattern")
    write(folder / "data", range(2))
    tiny.agent().save(folder / "run")
    checkpoint.save_tensors(folder / "run" / checkpoint.CHECKPOINT, {"progress/step": tiny.torch.tensor(3)}, "abc")
    (folder / "run" / checkpoint.LOG).write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    make_result().save(folder / "result.json")
    PairSet("two_room", 25, load_shipped("two_room", 25).pairs[:2], seed=1, policy="made up").save(
        folder / "pairs.json"
    )
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    (folder / "empty").mkdir()
    (folder / "odd.json").write_text("{}")
    return folder


PATHS = [
    "data",
    "data",
    "run",
    "run",
    "result.json",
    "pairs.json",
    "binary",
    "empty",
    "odd.json",
    "missing",
    "",
    "/proc/x",
]
PATHS += ["binary/below", "new", "x" * 300, "data/manifest.json", "run/weights.safetensors", "\udcff"]


@pytest.mark.parametrize("part", range(PARTS))
def test_no_command_line_ends_in_a_traceback(pattern, tmp_path, part, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parsers, ends, faults = fuzzing.parsers(), collections.Counter(), []
    for k in range(part, N, PARTS):
        rng = np.random.default_rng([SEED, k])
        program = str(rng.choice(list(parsers)))
        words = fuzzing.draw_call(rng, parsers[program], PATHS)
        with fuzzing.workplace(pattern, tmp_path / "work"):
            end = fuzzing.call(program, words)
        ends[end.split(":")[0]] += 1
        if end.startswith("fault"):
            faults.append(f"call {k} of seed {SEED}: python -m {program} {' '.join(words)[:300]!r}\n    {end[:300]}")
    tiny.note_counts({"drawn": "command lines", "ends": ends})
    assert not faults, f"{len(faults)} faults in {dict(ends)}\n" + "\n".join(faults)
    assert ends["refused"] > N / PARTS / 3, ends  # most are refused, or the calls drawn would test nothing


FORMATS = {
    "manifest": ("data/manifest.json", (fuzzing.damaged, fuzzing.other_kind), Dataset.open),
    "shard": ("data/episodes-000000-000001.arrow", (fuzzing.damaged, fuzzing.other_header), lambda f: verified(f)),
    "shard alone": ("data/episodes-000000-000001.arrow", (fuzzing.damaged, fuzzing.other_header), None),
    "run": ("run/run.json", (fuzzing.damaged, fuzzing.other_kind), tiny.LeWMAgent.load),
    "weights": ("run/weights.safetensors", (fuzzing.damaged,), tiny.LeWMAgent.load),
    "checkpoint": ("run/checkpoint.safetensors", (fuzzing.damaged,), checkpoint.load_tensors),
    "log": ("run/log.jsonl", (fuzzing.damaged, fuzzing.other_kind), training.read_log),
    "result": ("result.json", (fuzzing.damaged, fuzzing.other_kind), Result.load),
    "pairs": ("pairs.json", (fuzzing.damaged, fuzzing.other_kind), PairSet.load),
    "page of a result": ("result.json", (fuzzing.other_kind,), lambda f: write_report([f], "page.html")),
    **{
        f"page of {name!r}": (f"{name}.json", (fuzzing.other_kind,), lambda f: write_report([f], "page.html"))
        for name in RECORDS
    },
    "HDF5": ("export.h5", (fuzzing.damaged,), lambda f: import_hdf5(f, Path("again"), "two_room")),
    "Minari": (
        "minari/data/main_data.hdf5",
        (fuzzing.damaged,),
        lambda f: import_minari(Path("minari"), Path("again")),
    ),
    "Minari's description": (
        "minari/data/metadata.json",
        (fuzzing.damaged, fuzzing.other_kind),
        lambda f: import_minari(Path("minari"), Path("again")),
    ),
    "LeRobot": (
        "lerobot/data/chunk-000/file-000.parquet",
        (fuzzing.damaged, fuzzing.other_table),
        lambda f: import_lerobot(Path("lerobot"), Path("again")),
    ),
    "LeRobot's description": (
        "lerobot/meta/info.json",
        (fuzzing.damaged, fuzzing.other_kind),
        lambda f: import_lerobot(Path("lerobot"), Path("again")),
    ),
}
NEEDS = {"HDF5": "h5py", "Minari": "minari", "Minari's description": "minari"}


#: Formats in which every byte counts: a shard beside its manifest, under `verify`, and safetensors.
COVERED = ("shard", "weights", "checkpoint")


def verified(folder):
    """Raises the first fault of a dataset."""
    for fault in verify(folder):
        raise ValueError(fault)


def read_alone(folder):
    """Reads all that a dataset without a manifest holds."""
    dataset = Dataset.open(folder)
    for index in range(dataset.n_episodes):
        dataset.episode(index)
    return [dataset.column(name) for name in dataset.header.columns]


@pytest.fixture(scope="module")
def exports(pattern, tmp_path_factory):
    """A folder with the dataset in the formats of others, and a record of every kind."""
    folder, dataset = tmp_path_factory.mktemp("exports"), Dataset.open(pattern / "data")
    export_lerobot(dataset, folder / "lerobot")
    if importlib.util.find_spec("h5py"):
        export_hdf5(dataset, folder / "export.h5")
    if importlib.util.find_spec("minari"):
        export_minari(dataset, folder / "minari")
    for name, (body, _) in RECORDS.items():
        Record(name, body, MADE).save(folder / f"{name}.json")
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_no_damaged_file_ends_in_a_traceback_or_is_read_where_a_checksum_covers_it(pattern, exports, tmp_path, name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    file, ways, reader = FORMATS[name]
    source = pattern if (pattern / file).exists() else exports
    whole, ends, faults = (source / file).read_bytes(), collections.Counter(), []
    with fuzzing.workplace(source, tmp_path / "work") as folder:
        path = folder / file
        if name == "shard alone":
            (folder / "data/manifest.json").unlink()
        given = path if path.suffix in (".jsonl", ".safetensors") or "/" not in file else path.parent
        names = (path.name, str(given), file.split("/")[0])
        given = path.parent if name == "weights" else given
        for k in range(max(1, N // len(FORMATS))):
            rng = np.random.default_rng([SEED, k, sorted(FORMATS).index(name)])
            content = ways[int(rng.integers(len(ways)))](rng, whole)
            path.write_bytes(content)
            shutil.rmtree("again", ignore_errors=True)
            end = fuzzing.read_damaged(lambda: (reader or read_alone)(given), names)
            if end == "read" and name in COVERED and content != whole:
                end = "fault: read as if it were whole"
            ends[end.split(":")[0]] += 1
            if end.startswith("fault"):
                faults.append(f"file {k} of seed {SEED}: {end[:300]}")
    tiny.note_counts({"drawn": name, "ends": ends})
    assert not faults, f"{len(faults)} faults in {dict(ends)}\n" + "\n".join(faults)
    assert ends["refused"] or N < 1000 and "page" in name, ends
