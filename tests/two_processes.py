"""Prunes tiny models in as many processes as it is started in; ``tests/test_two_processes.py`` starts it.

    torchrun --nproc-per-node N tests/two_processes.py FOLDER

``FOLDER/options.json`` names each run and its options. What every process ends up with goes to
``FOLDER/NAME-RANK.safetensors``: the masks, or for heads and neurons the weights that are left.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import contraprune
from contraprune.jobs import Job
from contraprune.trainer import MaskedTrainer


def main(folder: Path) -> None:
    train = Job.train
    rank = os.environ.get("RANK", "0")
    for name, options in json.loads((folder / "options.json").read_text()).items():

        def and_save(self: Job, trainer: Any, *, name: str = name, **more: Any) -> None:
            train(self, trainer, **more)
            if isinstance(trainer, MaskedTrainer):
                tensors = {key: linear.mask for key, linear in trainer.criterion.linears.items()}
            else:
                tensors = {key: value.contiguous() for key, value in trainer.model.state_dict().items()}
            save_file(tensors, folder / f"{name}-{rank}.safetensors")

        Job.train = and_save  # type: ignore[method-assign]
        contraprune.prune(**options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
