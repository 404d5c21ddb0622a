"""Where training logs go besides the run folder's `log.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lewm_gym.training import Sink


def tensorboard(folder: Path) -> Sink:
    """Returns a sink that writes TensorBoard event files into `folder`/tensorboard.

    Raises:
        ImportError: If tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ImportError("--tensorboard needs: pip install 'lewm-gym[logging]'") from None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def sink(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return sink


def weights_and_biases(project: str, name: str, description: dict[str, Any]) -> Sink:
    """Returns a sink that logs to Weights & Biases (offline where WANDB_MODE says so).

    Raises:
        ImportError: If wandb is not installed.
    """
    try:
        import wandb  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ImportError("--wandb needs: pip install 'lewm-gym[logging]'") from None
    run = wandb.init(project=project, name=name, config=description, resume="allow")

    def sink(step: int, values: dict[str, float]) -> None:
        run.log(values, step=step)

    return sink
