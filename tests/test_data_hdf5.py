"""The reference's HDF5 layout, both ways."""

from __future__ import annotations

import numpy as np
import pytest
from test_data import made_up_episode, write

from lewm_gym.data import ClipSampler
from lewm_gym.data.hdf5 import export_hdf5, import_hdf5
from lewm_gym.data.verify import verify

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
        ({"size": 96}, r"pixels must be 224 x 224 x 3, got \(96, 96, 3\)"),
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
