"""Records operations, and finds those that would make the host wait for a device. It gives the same result on any machine."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal.", "item")


class Ops(TorchDispatchMode):
    """Records the name of each operation; indexing with a boolean mask counts as ``nonzero``."""

    def __init__(self):
        super().__init__()
        self.names, self.paused = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if "index." in name or "index_put" in name:
            indices = args[1] if len(args) > 1 else []
            if any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices):
                name = "nonzero (boolean index)"
        if not self.paused:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    @property
    def syncs(self) -> list[str]:
        """The operations that would make the host wait for the device."""
        return [name for name in self.names if any(sync in name for sync in SYNCS)]
