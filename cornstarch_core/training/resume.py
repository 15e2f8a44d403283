"""Find the checkpoint to resume a Trainer's run from, even if the run was killed while it saved a checkpoint."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

__all__ = ["last_checkpoint"]

_STATE = "trainer_state.json"
_WEIGHTS = ("model", "pytorch_model", "adapter_model", "global_step")  # files, or folders of FSDP and DeepSpeed
_OPTIMIZER = ("optimizer", "global_step")


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """Find the newest complete checkpoint in the ``output_dir`` of a transformers ``Trainer``.

    ``Trainer.train(resume_from_checkpoint=True)`` uses the newest folder, even if it is incomplete. A run that resumes
    from the result of this function ends like an uninterrupted run, because the checkpoint contains the weights, the
    optimizer, the schedule, the position in the data and the random state of its step.

    Args:
        folder: the ``output_dir`` of the Trainer; it does not need to exist.

    Returns:
        The path of a folder ``checkpoint-<step>``, or ``None`` if there is no complete checkpoint. Checkpoints that are
        incomplete or have no optimizer are skipped with a warning; the Trainer writes them again when it reaches their
        step. There is also a warning if the checkpoint was saved with another number of ranks.

    Example:
        >>> last_checkpoint("no/such/folder") is None
        True

        In a script that may be stopped and started again::

            trainer.train(resume_from_checkpoint=last_checkpoint(arguments.output_dir))
    """
    numbered = {path: path.name.removeprefix("checkpoint-") for path in Path(folder).glob("checkpoint-*")}
    found = [(int(step), path) for path, step in numbered.items() if step.isdecimal() and path.is_dir()]
    for _, path in sorted(found, reverse=True):
        problem = next(_problems(path), None)
        if problem is None:
            _warn_of_other_ranks(path)
            return str(path)
        warnings.warn(f"{path} can't be resumed from ({problem}); looking for an older one.", stacklevel=2)
    return None


def _problems(checkpoint: Path) -> Iterator[str]:
    """Yield what is missing or cut off. The Trainer writes its state after all other files."""
    names = [path.name for path in checkpoint.iterdir()]
    if _STATE not in names:
        yield f"no {_STATE}"
    if not any(name.startswith(_WEIGHTS) for name in names):
        yield "no weights"
    if not any(name.startswith(_OPTIMIZER) for name in names):
        yield "no optimizer; was it saved with save_only_model?"
    yield from (
        f"{path.name} is cut off" for path in sorted(checkpoint.iterdir()) if path.is_file() and _is_cut_off(path)
    )


def _is_cut_off(file: Path) -> bool:
    try:
        if file.name == _STATE:
            json.loads(file.read_text())
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
        elif file.suffix in (".pt", ".pth", ".bin"):  # zip archives, whose table of contents is written last
            return not zipfile.is_zipfile(file)
    except (SafetensorError, OSError, ValueError):
        return True
    return False


def _warn_of_other_ranks(checkpoint: Path) -> None:
    """Warn if the checkpoint has random states for another number of ranks; the Trainer then seeds the others anew."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    needed = {f"rng_state_{rank}.pth" for rank in range(ranks)} if ranks > 1 else {"rng_state.pth"}
    found = {path.name for path in checkpoint.glob("rng_state*.pth")}
    if found and found != needed:
        warnings.warn(
            f"{checkpoint} has the random states of {len(found)} ranks, and this run has {ranks}: its random numbers "
            "differ from those of an uninterrupted run.",
            stacklevel=3,
        )
