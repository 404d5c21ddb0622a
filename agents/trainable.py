"""What agents that learn from a dataset share: presets, training, and the run folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, get_type_hints

import msgspec
import torch

from lewm_gym import checkpoint, training
from lewm_gym.data.clips import ClipSampler
from lewm_gym.data.goals import VALUE_GOALS, GoalClips
from lewm_gym.training import OnLog, TrainingConfig

if TYPE_CHECKING:
    from lewm_gym.data.dataset import Dataset

#: Called with (items ready, items in all) while frames are prepared.
OnLoad = Callable[[int, int], None]


@dataclass(frozen=True)
class Preset:
    """A named configuration."""

    model: Any  # configuration of the model
    planning: Any  # a PlanningConfig, or None for agents that do not plan
    training: TrainingConfig


class Trainable:
    """The class methods that `agents.run` calls, with defaults for most agents.

    A model class is created from its configuration (`model_class(config)`), has buffers `action_mean` and
    `action_std`, and can be trained by `lewm_gym.training`: a module with `loss(batch)` and `after_step()`.

    Attributes:
        name: The agent's name in AGENTS and in run folders.
        presets: Name -> Preset.
        config_class: The model's configuration, a frozen dataclass with `from_json`.
        model_class: The model.
    """

    name: ClassVar[str]
    presets: ClassVar[dict[str, Preset]]
    config_class: ClassVar[Any]
    model_class: ClassVar[Any]

    @classmethod
    def preset(cls, name: str, task: str) -> Preset:
        """Returns one of `presets`, for a task.

        Raises:
            ValueError: If there is none of that name.
        """
        if name not in cls.presets:
            known = ", ".join(cls.presets)
            raise ValueError(f"unknown preset {name!r} of agent {cls.name!r}; expected one of: {known}")
        return cls.presets[name]

    @classmethod
    def resolve_config(cls, config: Any, dataset: Dataset) -> Any:
        """Returns the model's configuration with the values that follow from the dataset or from files."""
        return dataclasses.replace(config, action_size=dataset.action_size)

    @classmethod
    def initialise(cls, model: Any) -> None:
        """Loads weights from elsewhere (a frozen encoder's) into a new model; by default none."""

    @classmethod
    def set_normalization(cls, model: Any, dataset: Dataset) -> None:
        """Gives a new model the statistics of its training set; by default those of actions."""
        model.action_mean.copy_(torch.from_numpy(dataset.action_mean))
        model.action_std.copy_(torch.from_numpy(dataset.action_std))

    @classmethod
    def describe(cls, config: Any) -> dict[str, Any]:
        """Returns further entries of `run.json`; by default none."""
        return {}

    @classmethod
    def samplers(cls, dataset: Dataset, model: Any, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
        """Returns the samplers of training and validation batches: clips of disjoint episodes."""
        config = model.config

        def sampler(episodes: Any) -> ClipSampler:
            return ClipSampler(
                dataset,
                episodes,
                n_frames=config.context + 1,
                frame_skip=config.frame_skip,
                seed=seed,
                image_size=config.image_size,
            )

        return split_samplers(dataset, sampler, on_load)

    @classmethod
    def train(
        cls,
        model: Any,
        clips: Any,
        validation: Any,
        config: TrainingConfig,
        folder: Path,
        device: str,
        on_log: OnLog | None = None,
        **outputs: Any,
    ) -> float:
        """Trains a new model in a run folder, or resumes; arguments and result as for `training.train`."""
        return training.train(model, clips, validation, config, folder, device, on_log, **outputs)

    @classmethod
    def fit(
        cls,
        dataset: str | Path | Sequence[str | Path],
        folder: str | Path,
        preset: str = "laptop",
        device: str | None = None,
        **settings: Any,
    ) -> Self:
        """Trains on a dataset, or resumes the training in the run folder, and returns the agent.

        Args:
            dataset: Folder of a dataset that `python -m collect` wrote, or several of one task.
            folder: The run folder.
            preset: One of `presets`.
            device: Device; by default the best one available.
            settings: Values in place of the preset's, of the model's configuration or of TrainingConfig
                (`steps=2000`, `seed=1`, ...).

        Raises:
            ValueError: If an argument is wrong, or the folder holds another run.
            FileNotFoundError: If there is no dataset.
        """
        from agents.run import train_run

        agent: Self = train_run(cls, dataset, folder, preset, settings, device)
        return agent

    @classmethod
    def read(cls, folder: str | Path) -> tuple[Any, dict[str, Any]]:
        """Returns the model and the description of a run folder.

        Raises:
            FileNotFoundError: If there is no finished run.
            ValueError: If the folder is damaged, or holds another agent's run.
        """
        folder = Path(folder)
        description = checkpoint.load_description(folder)
        if description.get("agent") != cls.name:
            raise ValueError(f"{folder} holds a run of agent {description.get('agent')!r}, not of {cls.name!r}")
        if description.get("finished") is False:  # there may be weights of an earlier stage
            raise FileNotFoundError(f"the training in {folder} has not finished; run the same command again")
        try:
            msgspec.convert(description, _Environment)
        except msgspec.ValidationError as error:
            raise ValueError(
                f"{folder / checkpoint.DESCRIPTION}: this version cannot read it ({error}); train the run again"
            ) from None
        tensors = checkpoint.load_weights_of(folder, description)
        config = of_description(folder, description, "model", cls.config_class.from_json)
        try:
            model = cls.model_class(config)
        except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
            what = str(error).splitlines()[0]
            raise ValueError(
                f"{folder / checkpoint.DESCRIPTION}: its settings give no model ({what}); train the run again"
            ) from None
        checkpoint.load_weights(model, tensors, str(folder / checkpoint.WEIGHTS))
        return model, description

    @staticmethod
    def write(folder: str | Path, model: Any, description: dict[str, Any]) -> None:
        """Writes a run folder that `read` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_tensors(folder / checkpoint.WEIGHTS, model.state_dict())
        checkpoint.save_description(folder, description)


def of_description(folder: Path, description: dict[str, Any], part: str, read: Callable[[Any], Any]) -> Any:
    """Returns a configuration read from a part of `run.json`.

    Raises:
        ValueError: If the part is missing, or was written by a version with other settings.
    """
    try:
        config = read(description[part])
        _check_kinds(config)
        return config
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{folder / checkpoint.DESCRIPTION}: this version cannot read {part!r} ({error}); train the run again"
        ) from None


def _check_kinds(config: Any) -> None:
    """Raises ValueError, naming the setting, if a setting of a configuration has the wrong type."""
    kinds = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_kinds(value)
            continue
        try:
            msgspec.convert(msgspec.to_builtins(value), kinds[field.name])
        except (msgspec.ValidationError, TypeError) as error:
            raise ValueError(f"{field.name}: {error}") from None


class _Environment(msgspec.Struct):
    """What every agent needs to know about its environment."""

    task: str
    action_low: Annotated[list[float], msgspec.Meta(min_length=1)]
    action_high: Annotated[list[float], msgspec.Meta(min_length=1)]
    frame_size: Annotated[int, msgspec.Meta(ge=1)]


def split_samplers(dataset: Dataset, make: Callable[[Any], Any], on_load: OnLoad | None) -> tuple[Any, Any]:
    """Returns `make(episodes)` for training and for held-out episodes, both preloaded."""
    fit, held_out = dataset.split()
    samplers = make(fit), make(held_out)
    for sampler in samplers:
        sampler.preload(on_load)
    return samplers


def goal_clips(dataset: Dataset, config: Any, n_frames: int, seed: int, on_load: OnLoad | None) -> tuple[Any, Any]:
    """Returns samplers of clips with value goals, a whole number of blocks ahead, of training and held-out episodes."""
    goals = dataclasses.replace(VALUE_GOALS, discount=config.discount)
    options = {"frame_skip": config.frame_skip, "seed": seed, "image_size": config.image_size}
    return split_samplers(dataset, lambda some: GoalClips(dataset, some, goals, n_frames=n_frames, **options), on_load)
