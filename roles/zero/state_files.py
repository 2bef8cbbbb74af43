"""DeepSpeed's files of a checkpoint: written so that they are on the disk and hashed, read so that they run no code."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from roles.durable import write_durably
from roles.errors import RoleError

PLAIN = [LossScaler, ZeroStageEnum, fragment_address]
"""Classes of DeepSpeed's own that hold numbers, and of which its files hold objects."""


class StateFiles(TorchCheckpointEngine):
    """What DeepSpeed saves and loads its files with; it stands in for the one that unpickles whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.hashes: dict[Path, str] = {}
        """Hashes of the files that were saved."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write a file, and wait until it is on the disk."""

        def write(file: Any) -> None:
            torch.save(state_dict, file)

        self.hashes[Path(path)] = write_durably(Path(path), write)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read tensors, numbers, texts and lists of them. RoleError for a file that holds anything else."""
        try:
            with torch.serialization.safe_globals(PLAIN):
                return torch.load(path, map_location=map_location, weights_only=True)
        except (UnpicklingError, EOFError, RuntimeError) as error:
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise RoleError(f"{path} is no file of a checkpoint, and nothing in it was run: {reason}") from error
