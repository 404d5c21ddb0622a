"""From a dataset folder to a run folder: what `python -m agents`, `LeWMAgent.fit` and the demo share."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from agents import features_source
from agents.devices import choose_device
from lewm_gym import checkpoint, provenance, training
from lewm_gym.data.dataset import Dataset
from lewm_gym.data.union import open_datasets, parts_of
from lewm_gym.files import exclusive, is_whole, make_folder, remove_leftovers, sha256_of
from lewm_gym.nn.distributed import is_first, wait_for_all, world_size
from lewm_gym.plots import save_curves
from lewm_gym.training import OnLog, Sink, TrainingConfig

CURVES = "curves.png"
#: What a resumed run may have otherwise: it continues, if not bit for bit.
MAY_CHANGE = ("device", "threads", "processes")
#: Settings of training on which the weights do not depend: a resumed run may have them otherwise, too.
WITHOUT_EFFECT = ("checkpoint_every_s", "log_every_steps", "validate_every_steps")

LARGEST = 2**63  # of integers in settings
DEEPEST = 1000  # blocks of a network

#: Settings of models that cannot be chosen: the dataset and the encoder's run say them.
FILLED_IN = {"action_size", "proprioception_size", "encoder_config"}

#: Configurations of the model, of planning (None for agents that do not plan) and of training.
Recipe = tuple[Any, Any, TrainingConfig]


def train_run(
    agent_class: Any,
    dataset_folder: str | Path | Sequence[str | Path],
    folder: str | Path,
    preset: str,
    overrides: dict[str, Any] | None = None,
    device: str | None = None,
    on_log: OnLog | None = None,
    on_load: Callable[[int, int], None] | None = None,
    make_sinks: Callable[[dict[str, Any]], Sequence[Sink]] = lambda description: (),
) -> Any:
    """Trains an agent on a dataset, or resumes the training in the run folder, and returns the agent.

    Args:
        agent_class: A `Trainable` with `load`.
        dataset_folder: A dataset of `python -m collect`, or several of one task, which are combined.
        folder: The run folder.
        preset: One of the class's presets.
        overrides: Values in place of the preset's, of `TrainingConfig` (`steps`, `seed`, ...) or of the model's
            configuration (`latent_size`, ...).
        device: Device; by default the best one available.
        on_log: Called after every step with (steps done, steps in all, latest logs).
        on_load: Called with (episodes ready, episodes in all) while their frames are averaged down.
        make_sinks: Called with the run's description; returns further log sinks.

    Raises:
        ValueError: If an argument is wrong, or the folder holds another run.
        FileNotFoundError: If there is no dataset.
    """
    device = choose_device(device)
    dataset = open_datasets(dataset_folder)
    folder = Path(folder)
    recipe = _configure(agent_class, preset, overrides or {}, dataset)
    description = _describe(agent_class, preset, recipe, dataset, device)
    if not _finished(agent_class, folder, description):
        resumed, began = folder.exists(), time.process_time()
        model_config, _, config = recipe
        _check_memory(agent_class, model_config, config.batch_size, device)
        if folder.is_dir():
            with _held(folder):  # rejected now, not after minutes of reading frames
                pass
        model = _make_model(agent_class, model_config, config.seed, dataset).to(device)
        clips, validation = agent_class.samplers(dataset, model, config.seed, on_load)
        make_folder(folder)  # only now: a command that fails leaves nothing behind
        with _held(folder):
            if not _finished(agent_class, folder, description):  # by another process, meanwhile
                run = _claim(folder, description)
                outputs = {"sinks": make_sinks(description), "run": run}
                seconds = agent_class.train(model, clips, validation, config, folder, device, on_log, **outputs)
                if is_first():
                    cpu_seconds = None if resumed else time.process_time() - began
                    _finish(folder, {**description, "identity": run}, seconds, cpu_seconds)
                wait_for_all()
    elif is_first() and not is_whole(folder / CURVES):
        _draw_curves(folder, description)
    return agent_class.load(folder, device=device)


def is_finished(
    agent_class: Any,
    dataset: Dataset,
    folder: Path | None,
    preset: str,
    overrides: dict[str, Any] | None = None,
    device: str | None = None,
) -> bool:
    """Returns whether `train_run` with these arguments is finished; False without a folder.

    Raises:
        ValueError: As `train_run`: if an argument is wrong, or the folder holds another run.
    """
    recipe = _configure(agent_class, preset, overrides or {}, dataset)
    description = _describe(agent_class, preset, recipe, dataset, choose_device(device))
    return folder is not None and _finished(agent_class, folder, description)


def _describe(agent_class: Any, preset: str, recipe: Recipe, dataset: Dataset, device: str) -> dict[str, Any]:
    """Returns the identity of a run, and its environment."""
    model_config, planning, config = recipe
    return {
        "agent": agent_class.name,
        "preset": preset,
        "model": dataclasses.asdict(model_config),
        **({} if planning is None else {"planning": planning.to_json()}),
        **agent_class.describe(model_config),
        "training": dataclasses.asdict(config),
        "device": device,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        **_describe_dataset(dataset),
    }


def _describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Returns what a run folder records about the data and their environment."""
    return {
        "task": dataset.task,
        "frame_size": dataset.frame_size,
        "action_low": dataset.action_low.tolist(),
        "action_high": dataset.action_high.tolist(),
        "dataset": {
            "folder": str(dataset.folder),
            "hash": dataset.content_hash,
            "seed": dataset.header.seed,
            "policy": dataset.header.policy,
            "render_quality": dataset.header.render_quality,
            "episodes": dataset.n_episodes,
            "frames": dataset.n_frames,
            **_describe_parts(dataset),
        },
    }


def _describe_parts(dataset: Dataset) -> dict[str, Any]:
    """Returns what a run folder records about several datasets, each and together."""
    parts = parts_of(dataset)
    if len(parts) == 1:
        return {}
    seeds = {part.header.seed for part in parts}
    described = [{k: v for k, v in _describe_dataset(part)["dataset"].items() if k != "folder"} for part in parts]
    return {
        "folder": " + ".join(str(part.folder) for part in parts),
        "seed": seeds.pop() if len(seeds) == 1 else None,
        "parts": described,
    }


def _finish(folder: Path, description: dict[str, Any], seconds: float, cpu_seconds: float | None) -> None:
    _draw_curves(folder, description)
    done = {**description, **provenance.describe(), "finished": True, "training_seconds": round(seconds, 1)}
    if cpu_seconds is not None:  # of all threads, loading and encoding included; known of an uninterrupted training
        done["cpu_seconds"] = round(cpu_seconds, 1)
    checkpoint.save_description(folder, done)


def _draw_curves(folder: Path, description: dict[str, Any]) -> None:
    rows = training.read_log(folder / checkpoint.LOG)
    title = f"{description['agent']} on {description['task']}, seed {description['training']['seed']}"
    if rows:
        save_curves(rows, folder / CURVES, title)


def _configure(agent_class: Any, preset: str, overrides: dict[str, Any], dataset: Dataset) -> Recipe:
    """Returns the preset's three configurations with the dataset's action size and the overrides."""
    recipe = agent_class.preset(preset, dataset.task)
    of_training = {f.name for f in dataclasses.fields(TrainingConfig)}
    of_model = {f.name for f in dataclasses.fields(recipe.model)} - FILLED_IN
    unknown = sorted(set(overrides) - of_training - of_model)
    if unknown:
        raise ValueError(f"unknown settings {unknown}; expected some of {sorted(of_training | of_model)}")
    for name, value in overrides.items():
        _check_type(name, value, getattr(recipe.model if name in of_model else recipe.training, name))
    model = {k: v for k, v in overrides.items() if k in of_model}
    return (
        agent_class.resolve_config(dataclasses.replace(recipe.model, **model), dataset),
        recipe.planning,
        dataclasses.replace(recipe.training, **{k: v for k, v in overrides.items() if k in of_training}),
    )


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raises ValueError if a setting's value has another type than its default."""
    kinds: dict[type, tuple[str, Callable[[Any], bool]]] = {
        bool: ("true or false", lambda v: isinstance(v, bool)),
        int: ("a whole number of 64 bits", lambda v: isinstance(v, int) and not isinstance(v, bool)
              and abs(v) < LARGEST),
        float: ("a finite number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)
                and math.isfinite(v)),
        str: ("a word", lambda v: isinstance(v, str)),
        tuple: ("a list of whole numbers, such as [64,128]", lambda v: isinstance(v, tuple | list)
                and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in v)),
    }  # fmt: skip
    expected, fits = kinds.get(type(default), ("", lambda v: True))
    if not fits(value):
        raise ValueError(f"{name} must be {expected}, got {value!r}")
    if name.endswith("_depth") and value > DEEPEST:
        raise ValueError(f"{name} must be at most {DEEPEST}, got {value}")


def _defaults(config_class: Any) -> dict[str, Any]:
    """Returns the default of every setting that has one."""
    fields = dataclasses.fields(config_class)
    return {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}


def _finished(agent_class: Any, folder: Path, description: dict[str, Any]) -> bool:
    """Returns whether `folder` holds this run, finished; False if it is empty.

    A finished run without weights counts as unfinished: they are created again from its checkpoint. In runs of older
    versions, missing settings have their defaults, and a missing record of the encoder's file is not compared.

    Raises:
        ValueError: If the folder holds another run.
    """
    if not (folder / checkpoint.DESCRIPTION).exists():
        return False
    found = checkpoint.load_description(folder)
    defaults = {"model": _defaults(agent_class.config_class), "training": _defaults(TrainingConfig)}
    for part, values in json.loads(json.dumps(defaults)).items():
        if isinstance(found.get(part), dict):
            found[part] = {**values, **found[part]}
    found = _identity(found)
    wanted = _identity(json.loads(json.dumps(description)))
    not_compared = () if features_source.SOURCE in found else ("features", features_source.SOURCE)
    different = [k for k in wanted if k not in not_compared and found.get(k) != wanted[k]]
    if different:
        what = "; ".join(f"{k}: {_brief(found.get(k), wanted[k])}" for k in different)
        raise ValueError(f"{folder} holds another run ({what}); choose another folder, or delete this one")
    return bool(found.get("finished")) and (folder / checkpoint.WEIGHTS).exists()


def _identity(description: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a description determines the weights.

    The dataset's folder is not part of it: its hash is.
    """
    described = {k: v for k, v in description.items() if k not in MAY_CHANGE}
    for part, without in (("dataset", ("folder",)), ("training", WITHOUT_EFFECT)):
        if isinstance(described.get(part), dict):
            described[part] = {k: v for k, v in described[part].items() if k not in without}
    return described


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locks the run folder against a second training; of several processes, the first does."""
    with exclusive(folder) if is_first() else contextlib.nullcontext():
        yield


def _claim(folder: Path, description: dict[str, Any]) -> str:
    """Writes this run's description to `folder`, unless it exists, and removes temporary files of killed processes.

    Returns the run's identity in its checkpoint and weights: the hash of what determined it when it started.
    """
    if is_first():
        remove_leftovers(folder)
        if not (folder / checkpoint.DESCRIPTION).exists():
            identity = sha256_of(_identity(description))
            checkpoint.save_description(folder, {**description, "identity": identity, "finished": False})
    wait_for_all()
    return str(checkpoint.load_description(folder).get("identity", ""))


def _brief(found: Any, wanted: Any) -> str:
    """Returns how two values differ, down to the entries of dictionaries."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [k for k in wanted if found.get(k) != wanted[k]]
        return ", ".join(f"{k} {found.get(k)!r} there, {wanted[k]!r} asked" for k in keys)
    return f"{found!r} there, {wanted!r} asked"


def _check_memory(agent_class: Any, config: Any, batch_size: int, device: str) -> None:
    """Raises ValueError if the model, its gradient and Adam's moments, or a batch of clips, exceed the memory.

    A lower bound is used: rejected settings could not have been trained.
    """
    on_gpu = torch.device(device).type == "cuda"
    memory = (
        torch.cuda.get_device_properties(device).total_memory
        if on_gpu
        else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )
    advice = f"this machine has {memory / 2**30:.1f} GiB: choose smaller settings"
    frames = batch_size * 2 * 3 * config.image_size**2  # two frames of a clip at least
    if frames > memory:
        raise ValueError(f"batch_size {batch_size:,} takes {frames / 2**30:,.1f} GiB for the frames; {advice}")
    try:
        with torch.device("meta"):
            model = agent_class.model_class(config)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise ValueError(f"a tensor of the model is too large for 64-bit sizes; {advice}") from None
    needed = 4 * sum(p.numel() * p.element_size() for p in model.parameters())
    if needed > memory:
        raise ValueError(f"training this model takes {needed / 2**30:,.1f} GiB; {advice}")


def _make_model(agent_class: Any, config: Any, seed: int, dataset: Dataset) -> Any:
    torch.manual_seed(training.step_seed(seed, -1 % 2**32))  # a stream that no step uses
    model = agent_class.model_class(config)
    agent_class.initialise(model)
    agent_class.set_normalization(model, dataset)
    return model
