"""Lance tables that stable-worldmodel's own writer made, read here; HDF5 of ours, read by its reader."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from reference import reference
from test_data import made_up_episode, write

from collect.__main__ import main
from lewm_gym.data import ClipSampler
from lewm_gym.data.foreign.hdf5 import export_hdf5
from lewm_gym.data.foreign.lance import import_lance
from lewm_gym.data.verify import verify

pytest.importorskip("lance", reason="pylance is not installed: pip install 'lewm-gym[lance]'")


def step_columns(task, length, rng):
    """What the recorder of stable-worldmodel has of an episode, a list of a value per step and column."""
    flat = np.repeat(rng.integers(0, 256, (length, 1, 1, 3), np.uint8), 224, axis=1).repeat(224, axis=2)
    action_size = 5 if task == "cube" else 2
    columns = {
        "pixels": list(flat),
        "action": list(rng.uniform(-1, 1, (length, action_size)).astype(np.float32)),
        "reward": list(rng.normal(size=length)),
        "terminated": [step == length - 1 for step in range(length)],
        "truncated": [False] * length,
        "id": [7] * length,
        "env_name": [f"swm/{task}"] * length,
        "variation.agent.color": list(rng.integers(0, 256, (length, 3)).astype(np.float32)),
    }
    if task == "two_room":
        columns |= {name: list(rng.normal(size=(length, 2))) for name in ("state", "proprio", "goal_state")}
    elif task == "pusht":
        columns |= {"state": list(rng.normal(size=(length, 7))), "block_pose": list(rng.normal(size=(length, 3)))}
        columns |= {"n_contacts": [3] * length, "goal": list(flat)}
    else:
        columns |= {"qpos": list(rng.normal(size=(length, 21))), "qvel": list(rng.normal(size=(length, 20)))}
        columns |= {"success": [float("nan") if task == "reacher" else step > 3 for step in range(length)]}
        columns |= {"proprio/joint_pos": list(rng.normal(size=(length, 6)))}
    return columns


def table(folder, task="pusht", lengths=(17, 20, 4), seed=0, drop=()):
    """Writes a table with stable-worldmodel's writer; returns it and what was written."""
    writer = reference("data.formats.lance", "lancedb").LanceWriter
    rng = np.random.default_rng(seed)
    episodes = [step_columns(task, length, rng) for length in lengths]
    for episode in episodes:
        for name in drop:
            del episode[name]
    path = folder / f"{task}.lance"
    with writer(path) as out:
        out.write_episodes(episodes)
    return path, episodes


@pytest.mark.parametrize("task", ["two_room", "pusht", "cube", "reacher"])
def test_tables_of_its_writer_train_here(tmp_path, task):
    path, episodes = table(tmp_path, task)
    dataset = import_lance(path, tmp_path / "data", task)
    assert dataset.lengths.tolist() == [17, 20, 4] and verify(dataset.folder) == []
    for number, wrote in enumerate(episodes):
        read = dataset.episode(number)
        assert np.abs(read.pixels.astype(int) - np.stack(wrote["pixels"])).max() <= 3  # JPEG of a flat colour
        np.testing.assert_array_equal(read.action[:-1], np.stack(wrote["action"])[:-1])
        assert np.isnan(read.action[-1]).all()
        names = ["state"] if "state" in wrote else ["qpos", "qvel"]
        state = np.concatenate([np.stack(wrote[name]) for name in names], axis=1)
        np.testing.assert_array_equal(read.state, state.astype(np.float32))
        success = wrote["success"] if task == "cube" else wrote["terminated"]
        assert read.success.tolist() == success
    assert "variation_agent_color" in read.quantities
    assert not {"reward", "id", "goal", "action", "truncated", "episode_idx"} & set(read.quantities)
    assert ("block_pose" in read.quantities) == (task == "pusht")
    assert ClipSampler(dataset).batch(0, 2).pixels.shape[-3:] == (224, 224, 3)


def test_its_folder_of_one_table_and_another_state_and_camera(tmp_path):
    path, episodes = table(tmp_path / "set", "pusht")
    again = import_lance(path.parent, tmp_path / "data", "pusht", state="block_pose,n_contacts", pixels="pixels")
    assert again.episode(0).state.shape == (17, 4)
    assert "block_pose" in again.episode(0).quantities and "state" not in again.episode(0).quantities


def test_an_interrupted_import_resumes(tmp_path):
    path, _ = table(tmp_path, "two_room")
    whole = import_lance(path, tmp_path / "whole", "two_room")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_lance(path, tmp_path / "data", "two_room", progress=stop)
    done = []
    dataset = import_lance(path, tmp_path / "data", "two_room", progress=lambda *counts: done.append(counts))
    assert done[-1] == (2, 2)
    for number in range(3):
        np.testing.assert_array_equal(dataset.episode(number).pixels, whole.episode(number).pixels)


@pytest.mark.parametrize(
    ("drop", "options", "message"),
    [
        (("action",), {}, "no column 'action', so it is not of stable-worldmodel's layout; it has: .*episode_idx"),
        (("state",), {}, r"no column state nor qpos\+qvel.*choose another with --state: "),
        (("pixels",), {}, r"should have one image column, it has \[\]"),
        ((), {"state": "pose"}, "no column pose to take as the state"),
        ((), {"state": "env_name"}, "column env_name does not hold numbers"),
        ((), {"pixels": "goal"}, r"has no image column 'goal'; choose among \['pixels'\] with --pixels"),
    ],
)
def test_tables_of_another_layout_are_refused(tmp_path, drop, options, message):
    path, _ = table(tmp_path, drop=drop)
    with pytest.raises(ValueError, match=message):
        import_lance(path, tmp_path / "data", "pusht", **options)
    assert not (tmp_path / "data").exists()


def test_what_is_no_table_and_what_is_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Lance table at .*nowhere"):
        import_lance(tmp_path / "nowhere", tmp_path / "data", "pusht")
    (tmp_path / "empty.lance").mkdir()
    with pytest.raises(ValueError, match="empty.lance cannot be read as a Lance table"):
        import_lance(tmp_path / "empty.lance", tmp_path / "data", "pusht")
    path, _ = table(tmp_path)
    data = next((path / "data").iterdir())
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(ValueError, match="pusht.lance.* cannot be read as a Lance table"):
        import_lance(path, tmp_path / "data", "pusht")


def test_memory_does_not_grow_with_the_table(tmp_path):
    small, _ = table(tmp_path / "small", lengths=(30,) * 2)
    large, _ = table(tmp_path / "large", lengths=(30,) * 18)
    peaks = [peak_bytes(path, tmp_path / f"data-{path.parent.name}") for path in (small, large)]
    frames = 16 * 30 * 224 * 224 * 3  # what the large one has more, 72 MB
    assert peaks[1] - peaks[0] < frames / 2


def peak_bytes(path, folder):
    code = f"""
import resource
from lewm_gym.data.foreign.lance import import_lance
import_lance({str(path)!r}, {str(folder)!r}, "pusht")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * {1 if sys.platform == "darwin" else 1024})
"""
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_an_export_of_ours_is_read_by_its_hdf5_reader(tmp_path):
    reader = reference("data.formats.hdf5", "h5py", "hdf5plugin").HDF5Dataset
    dataset = write(tmp_path / "data", range(4))
    export_hdf5(dataset, tmp_path / "out.h5")
    theirs = reader(path=tmp_path / "out.h5", frameskip=2, num_steps=3)
    assert theirs.lengths.tolist() == dataset.lengths.tolist()
    episode = made_up_episode(2, 10)
    clip = theirs._load_slice(2, 1, 7)
    np.testing.assert_array_equal(clip["pixels"].numpy(), episode.pixels[1:7:2].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(clip["action"].numpy(), episode.action[1:7])
    np.testing.assert_array_equal(clip["state"].numpy(), episode.state[1:7:2])
    sample = theirs[0]
    assert sample["pixels"].shape == (3, 3, 224, 224)


def test_the_command_sees_that_it_is_lance(tmp_path, capsys):
    path, _ = table(tmp_path)
    with pytest.raises(ValueError, match="pusht.lance does not contain its task: add --task"):
        main(["import", str(path), "--out", str(tmp_path / "data")])
    assert main(["import", str(path), "--task", "pusht", "--out", str(tmp_path / "data")]) == 0
    assert "3 episodes" in capsys.readouterr().out
