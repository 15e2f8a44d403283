"""Handle PEFT wrappers. This module does not import PEFT, because no module is wrapped until the user imports PEFT."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from peft import PeftModel

__all__ = ["is_peft", "unwrap"]


def is_peft(module: object) -> TypeGuard[PeftModel]:
    """Whether ``module`` is a ``PeftModel``."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(module, peft.PeftModel)


def unwrap(module: object) -> Any:
    """Return the model inside a ``PeftModel``, or ``module`` itself if it is not wrapped.

    The ``forward`` of the wrapper has the signature ``(*args, **kwargs)``, which does not name the model's arguments.
    """
    peft = sys.modules.get("peft")
    return module.get_base_model() if peft is not None and isinstance(module, peft.PeftModel) else module
