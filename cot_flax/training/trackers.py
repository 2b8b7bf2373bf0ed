"""Services that follow a run, beside metrics.jsonl and TensorBoard's files."""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from cot_flax.errors import UserError


class Tracker(Protocol):
    """What `train` tells a service; the first process of a run alone does.

    One of your own is bound as `TRACKER = @my_module.MyTracker()`.
    """

    def start(self, run_id: str, model_dir: str, facts: Mapping[str, Any]) -> None:
        """Begins the run `run_id`, or goes on with it; before anything is compiled or written.

        Args:
            run_id: the same one for each start of a run, another one after --overwrite.
            model_dir: of the run, on this machine or in a bucket.
            facts: as `run_folder.write_facts` has them.

        Raises:
            UserError: the service cannot be had.
        """

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step, by names such as `train/loss`."""

    def close(self) -> None:
        """Ends the run, which has failed where an exception is on its way."""


@dataclasses.dataclass
class Wandb:
    """Weights & Biases, https://docs.wandb.ai; its variables, such as WANDB_MODE=offline, hold.

    Args:
        project: None is WANDB_PROJECT, or `cot-flax`.
        entity: a user or team; None is WANDB_ENTITY, or the one that logged in.
        name: of the run; None is WANDB_NAME, or the last part of MODEL_DIR.
        tags: to find it by.
    """

    project: str | None = None
    entity: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()

    def start(self, run_id: str, model_dir: str, facts: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            if error.name != "wandb":
                raise
            raise UserError(
                "no wandb", "what TRACKER=@trackers.Wandb() needs", "run: pip install wandb"
            ) from error
        try:
            self._run = wandb.init(
                project=self.project or os.environ.get("WANDB_PROJECT", "cot-flax"),
                entity=self.entity,
                name=self.name or os.environ.get("WANDB_NAME", Path(model_dir).name),
                tags=self.tags,
                id=run_id,
                resume="allow",  # goes on with the run of this id, where the service has one
                config={"model_dir": model_dir, **facts},
                # Its own facts only; a run's configuration is ours to publish, code is not.
                settings=wandb.Settings(save_code=False, disable_git=True),
            )
        except wandb.Error as error:
            raise UserError(
                f"no run of Weights & Biases ({str(error).splitlines()[0]})",
                "an account that is logged in, and a network",
                "run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline",
            ) from error

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
