"""The checkpoint of a Trainer to resume a run from, also after it was killed in the middle of saving one."""

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
_WEIGHTS = ("model", "pytorch_model", "adapter_model", "global_step")  # also as folders: of FSDP, of DeepSpeed
_OPTIMIZER = ("optimizer", "global_step")


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest whole checkpoint in the ``output_dir`` of a transformers ``Trainer``, or ``None``.

    ``Trainer.train(resume_from_checkpoint=True)`` takes the newest folder, even if it is incomplete. A run that resumes
    from the result of this function ends like an uninterrupted run: the weights, the optimizer, the schedule, the
    position in the data and the random state are those of that step.

    Args:
        folder: the ``output_dir``; may be missing.

    Returns:
        The path of a ``checkpoint-<step>`` in it. Incomplete ones, and those without an optimizer, are skipped with a
        warning; the Trainer writes them again when it reaches that step. Another number of ranks gives a warning, too.

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
    """What is missing or cut off; the state is the last file that the Trainer writes."""
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
        elif file.suffix in (".pt", ".pth", ".bin"):  # torch writes archives, the table of contents last
            return not zipfile.is_zipfile(file)
    except (SafetensorError, OSError, ValueError):
        return True
    return False


def _warn_of_other_ranks(checkpoint: Path) -> None:
    """Each rank has its own random state; the Trainer seeds the ranks that a checkpoint does not have anew."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    needed = {f"rng_state_{rank}.pth" for rank in range(ranks)} if ranks > 1 else {"rng_state.pth"}
    found = {path.name for path in checkpoint.glob("rng_state*.pth")}
    if found and found != needed:
        warnings.warn(
            f"{checkpoint} has the random states of {len(found)} ranks, and this run has {ranks}: its random numbers "
            "differ from those of an uninterrupted run.",
            stacklevel=3,
        )
