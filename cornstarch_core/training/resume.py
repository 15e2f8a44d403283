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


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest whole checkpoint in the ``output_dir`` of a transformers ``Trainer``, or ``None``.

    ``Trainer.train(resume_from_checkpoint=True)`` takes the newest folder whether it was written to its end or not.
    From what this returns a run goes on as if it had never stopped: the weights, the optimizer, the schedule, the place
    in the data and the random state are those of that step.

    Args:
        folder: the ``output_dir``; may be missing.

    Returns:
        The path of a ``checkpoint-<step>`` in it. Unfinished ones are warned of, and passed over; the Trainer writes
        them anew when it gets there.

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
            return str(path)
        warnings.warn(f"{path} was not written to its end ({problem}); looking for an older one.", stacklevel=2)
    return None


def _problem(checkpoint: Path) -> str | None:
    """What is missing; the state is the last file that the Trainer writes."""
    try:
        json.loads((checkpoint / _STATE).read_text())
    except FileNotFoundError:
        return f"no {_STATE}"
    except ValueError:
        return f"{_STATE} is cut off"
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    states = [f"rng_state_{rank}.pth" for rank in range(ranks)] if ranks > 1 else []
    missing = [name for name in states if not (checkpoint / name).exists()]
    if missing:  # each rank writes its own, whenever it gets to it
        return f"no {missing[0]}"
    return next((f"{path.name} is cut off" for path in sorted(checkpoint.iterdir()) if _is_cut_off(path)), None)


def _is_cut_off(path: Path) -> bool:
    if path.suffix in (".pt", ".pth", ".bin"):  # torch writes archives, the table of contents last
        return not zipfile.is_zipfile(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return False
        except (SafetensorError, OSError):
            return True
    return False
