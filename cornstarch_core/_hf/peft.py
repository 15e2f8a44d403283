"""PEFT wrappers. This module does not import PEFT: as long as nobody has, no module is wrapped by it."""

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
    """The model inside a ``PeftModel``. Its signature is the real one; the wrapper's is ``(*args, **kwargs)``."""
    peft = sys.modules.get("peft")
    return module.get_base_model() if peft is not None and isinstance(module, peft.PeftModel) else module
