"""The reference's HDF5 layout, both ways."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from test_data import made_up_episode, write

from lewm_gym.data.foreign.hdf5 import export_hdf5, import_hdf5
from lewm_gym.data.verify import verify
from lewm_gym.files import atomic_file

h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install 'lewm-gym[hdf5]'")


def reference_file(path, layout="hwc", size=224, drop=()):
    """Writes a file as stable-worldmodel's own writer does: chunks of a step, `ep_len` int32, `ep_offset` int64."""
    episodes = [made_up_episode(number, 17 + number) for number in range(3)]
    pixels = np.concatenate([e.pixels for e in episodes])[:, :size, :size]
    columns = {
        "pixels": pixels if layout == "hwc" else pixels.transpose(0, 3, 1, 2),
        "action": np.nan_to_num(np.concatenate([e.action for e in episodes])),
        "state": np.concatenate([e.state for e in episodes]).astype(np.float32),
        "proprio": np.concatenate([e.quantities["angle"][:, 0] for e in episodes]),
        "terminated": np.concatenate([e.success for e in episodes]),
        "env_name": np.array([b"swm/PushT-v1"] * len(pixels)),
    }
    lengths = np.array([len(e) for e in episodes], np.int32)
    with h5py.File(path, "w", libver="latest") as file:
        for name, values in columns.items():
            if name not in drop:
                step = values.shape[1:]
                file.create_dataset(name, data=values, chunks=(1, *step), maxshape=(None, *step))
        file["ep_len"] = lengths
        file["ep_offset"] = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return path


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_the_references_files_train_here(tmp_path, layout):
    dataset = import_hdf5(reference_file(tmp_path / "ref.h5", layout), tmp_path / "data", "pusht")
    assert dataset.lengths.tolist() == [17, 18, 19] and verify(dataset.folder) == []
    for number in range(3):
        wrote, read = made_up_episode(number, 17 + number), dataset.episode(number)
        np.testing.assert_array_equal(read.pixels, wrote.pixels)
        np.testing.assert_array_equal(read.action, wrote.action)  # the last row is NaN again
        np.testing.assert_array_equal(read.state, wrote.state.astype(np.float32))
        np.testing.assert_array_equal(read.success, wrote.success)
        np.testing.assert_array_equal(read.quantities["proprio"], wrote.quantities["angle"])
    from lewm_gym.data import ClipSampler  # torch, which the other tests need not wait for

    assert ClipSampler(dataset).batch(0, 4).pixels.shape == (4, 4, 224, 224, 3)


def test_ours_can_be_read_as_the_references(tmp_path):
    dataset = write(tmp_path / "data", range(4))
    export_hdf5(dataset, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5", "r", swmr=True) as file:  # the ways of the reference's reader
        lengths, offsets = file["ep_len"][:], file["ep_offset"][:]
        assert lengths.tolist() == dataset.lengths.tolist()
        rows = slice(offsets[2] + 1, offsets[2] + 6)
        np.testing.assert_array_equal(file["pixels"][rows], made_up_episode(2, 10).pixels[1:6])
        np.testing.assert_array_equal(file["action"][rows], made_up_episode(2, 10).action[1:6])
        assert file["episode_idx"][rows].tolist() == [2] * 5 and file["step_idx"][rows].tolist() == [1, 2, 3, 4, 5]
    again = import_hdf5(tmp_path / "out.h5", tmp_path / "again", "two_room")
    for index in range(4):
        np.testing.assert_array_equal(again.episode(index).pixels, dataset.episode(index).pixels)
        np.testing.assert_array_equal(again.episode(index).state, dataset.episode(index).state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("action",)}, "has no dataset 'action', so it is not of the reference's layout; it has: .*ep_len"),
        ({"drop": ("state",)}, "no column 'state'.*choose another with --state"),
        ({"size": 96}, r"pixels must be 224 x 224 x 3 uint8, got \(96, 96, 3\)"),
    ],
)
def test_files_of_another_layout_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        import_hdf5(reference_file(tmp_path / "ref.h5", **options), tmp_path / "data", "pusht")
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_not_hdf5_is_named(tmp_path):
    (tmp_path / "text.h5").write_text("nothing")
    with pytest.raises(ValueError, match="text.h5 cannot be read as HDF5"):
        import_hdf5(tmp_path / "text.h5", tmp_path / "data", "pusht")
    with pytest.raises(FileNotFoundError, match="no file"):
        import_hdf5(tmp_path / "missing.h5", tmp_path / "data", "pusht")


def changed(path, **columns):
    """Replaces datasets of a file; None makes a group."""
    with h5py.File(path, "a") as file:
        for name, values in columns.items():
            if name in file:
                del file[name]
            if values is None:
                file.create_group(name)
            else:
                file[name] = values
    return path


WRONG = {
    "lengths beyond the rows": ({"ep_len": [1_000_000, 18, 19]}, "episode 0 has ep_len 1000000 and ep_offset 0"),
    "a negative length": ({"ep_len": [17, -18, 19]}, "episode 1 has ep_len -18"),
    "a negative offset": ({"ep_offset": [-17, 17, 35]}, "episode 0 has ep_len 17 and ep_offset -17"),
    "overlapping episodes": ({"ep_offset": [0, 16, 35]}, "episode 1 has ep_len 18 and ep_offset 16"),
    "fewer offsets than episodes": ({"ep_offset": [0, 17]}, "'ep_offset' has 2 rows, where there are 3"),
    "lengths in words": ({"ep_len": [b"17", b"18", b"19"]}, "'ep_len' must hold whole numbers in 1 axes"),
    "lengths with two axes": ({"ep_len": [[17], [18], [19]]}, "'ep_len' must hold whole numbers in 1 axes"),
    "a group of actions": ({"action": None}, "'action' must be a dataset, got a group"),
    "a group of pixels": ({"pixels": None}, "'pixels' must be a dataset, got a group"),
    "a single number": ({"state": 3.0}, "'state' must hold numbers in one or more axes"),
    "actions of another number": ({"action": np.zeros((5, 2))}, "'action' has 5 rows, where there are 54 frames"),
    "quantities of another number": ({"proprio": np.zeros(5)}, "'proprio' has 5 rows, where there are 54 frames"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_contradicts_itself_is_refused_before_anything_is_written(tmp_path, what):
    columns, message = WRONG[what]
    path = changed(reference_file(tmp_path / "ref.h5"), **columns)
    with pytest.raises(ValueError, match=f"ref.h5.*{message}"):
        import_hdf5(path, tmp_path / "data", "pusht")
    assert not (tmp_path / "data").exists()


def test_frames_that_are_declared_but_not_there_are_refused(tmp_path):
    path = reference_file(tmp_path / "ref.h5", drop=("pixels",))
    with h5py.File(path, "a") as file:
        file.create_dataset("pixels", (10**12, 224, 224, 3), np.uint8, chunks=(1, 224, 224, 3))
    with pytest.raises(ValueError, match="'pixels' declares 1,000,000,000,000 rows, but not all are in the file"):
        import_hdf5(path, tmp_path / "data", "pusht")


def test_data_in_other_files_are_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(54 * 2 * 8))
    other = reference_file(tmp_path / "other.h5")
    for how in ("external storage", "external link", "soft link", "virtual"):
        path = reference_file(tmp_path / f"{how}.h5", drop=("state",))
        with h5py.File(path, "a") as file:
            if how == "external storage":
                file.create_dataset("state", (54, 2), np.float64, external=[(str(tmp_path / "secret"), 0, 54 * 16)])
            elif how == "virtual":
                layout = h5py.VirtualLayout((54, 3), np.float64)
                layout[:] = h5py.VirtualSource(str(other), "state", (54, 3))
                file.create_virtual_dataset("state", layout)
            else:
                file["state"] = h5py.SoftLink("/action") if "soft" in how else h5py.ExternalLink(str(other), "/state")
        with pytest.raises(ValueError, match=f"{how}.h5: .*(lie in other files|is a link)"):
            import_hdf5(path, tmp_path / "data", "pusht")


def test_flipped_bytes_of_a_file_end_in_one_line_that_names_it(tmp_path):
    path = reference_file(tmp_path / "ref.h5")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    ends = {"read": 0, "refused": 0}
    for position in [*rng.integers(0, 3000, 40).tolist(), *rng.integers(0, len(whole), 10).tolist()]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            import_hdf5(path, tmp_path / f"data-{position}", "pusht")
            ends["read"] += 1  # HDF5 holds no checksum of the data: what they say cannot be known here
        except ValueError as error:
            assert "ref.h5" in str(error), error
            ends["refused"] += 1
    assert ends["refused"] > 5, ends


@pytest.mark.parametrize("format", ["hdf5", "minari"])
def test_export_onto_a_full_disk_ends_in_one_line_and_no_crash(small_disk, tmp_path, format):
    if format == "minari":
        pytest.importorskip("minari", reason="minari is not installed")
    dataset = write(tmp_path / "data", range(6), length=lambda number: 40)
    command = [sys.executable, "-m", "collect", "export", str(dataset.folder), "--format", format]
    done = subprocess.run([*command, "--out", str(small_disk / "out")], capture_output=True, text=True, timeout=280)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.splitlines()[-1].startswith(f"error: No space left on device: {small_disk / 'out'}")
    assert not list(small_disk.iterdir())


def test_what_a_killed_export_left_is_removed_but_not_what_another_one_writes(tmp_path):
    dataset = write(tmp_path / "data", range(2))
    left = tmp_path / ".out.h5.0123456789ab.tmp.h5"
    left.write_bytes(b"half")
    with atomic_file(tmp_path / "out.h5"):
        export_hdf5(dataset, tmp_path / "out.h5")
        assert not left.exists() and len(list(tmp_path.glob(".out.h5.*"))) == 1
