"""Which checkpoint of a Trainer a run can go on from, also after it was killed in the middle of saving one."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

__all__ = ["last_checkpoint"]

_STATE = "trainer_state.json"
_WEIGHTS = ("model", "pytorch_model", "adapter_model", "global_step")  # also as folders: of FSDP, of DeepSpeed
_OPTIMIZER = ("optimizer", "global_step")


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest whole checkpoint in the ``output_dir`` of a transformers ``Trainer``, or ``None``.

    ``Trainer.train(resume_from_checkpoint=True)`` takes the newest folder whether it was written to its end or not.
    From what this returns a run goes on as if it had never stopped: the weights, the optimizer, the schedule, the place
    in the data and the random state are those of that step.

    Args:
        folder: the ``output_dir``; may be missing.

    Returns:
        The path of a ``checkpoint-<step>`` in it. Unfinished ones, and those without an optimizer, are warned of and
        passed over; the Trainer writes them anew when it gets there. Another number of ranks is warned of, too.

    Example:
        >>> last_checkpoint("no/such/folder") is None
        True

        In a script that is started again after it was stopped::

            trainer.train(resume_from_checkpoint=last_checkpoint(arguments.output_dir))
    """
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(folder).glob("checkpoint-*")}
    found = sorted((int(step[1]), path) for path, step in steps.items() if step is not None and path.is_dir())
    for _, path in reversed(found):
        problem = _problem(path)
        if problem is None:
            _warn_of_other_ranks(path)
            return str(path)
        warnings.warn(f"{path} can't be gone on from ({problem}); looking for an older one.", stacklevel=2)
    return None


def _problem(checkpoint: Path) -> str | None:
    """What is missing; the state is the last file that the Trainer writes."""
    names = [path.name for path in checkpoint.iterdir()]
    try:
        state = json.loads((checkpoint / _STATE).read_text())
    except FileNotFoundError:
        return f"no {_STATE}"
    except ValueError:
        return f"{_STATE} is cut off"
    if not isinstance(state, dict) or not any(name.startswith(_WEIGHTS) for name in names):
        return "no weights"
    if not any(name.startswith(_OPTIMIZER) for name in names):
        return "no optimizer; was it saved with save_only_model?"
    return next((f"{path.name} is cut off" for path in sorted(checkpoint.iterdir()) if _is_cut_off(path)), None)


def _warn_of_other_ranks(checkpoint: Path) -> None:
    """Each rank has random numbers of its own; of those that there were not, the Trainer draws new ones."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    needed = {f"rng_state_{rank}.pth" for rank in range(ranks)} if ranks > 1 else {"rng_state.pth"}
    found = {path.name for path in checkpoint.glob("rng_state*.pth")}
    if found and found != needed:
        warnings.warn(
            f"{checkpoint} has the random states of {len(found)} ranks, and this run has {ranks}: it goes on, but not "
            "as if it had never stopped.",
            stacklevel=3,
        )


def _is_cut_off(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix in (".pt", ".pth", ".bin"):  # torch writes archives, the table of contents last
        return not zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return False
        except (SafetensorError, OSError):
            return True
    return False
