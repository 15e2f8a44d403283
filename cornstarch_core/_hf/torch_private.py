"""Access private names of torch (2.13), with a fallback for each, since torch may rename them in any release."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import distributed

try:
    from torch._C._functorch import is_functorch_wrapped_tensor as _is_wrapped
    from torch.utils._python_dispatch import _get_current_dispatch_mode as _dispatch_mode
except ImportError:  # without them no tensor counts as readable
    _is_wrapped: Callable[[torch.Tensor], bool] = lambda tensor: True  # type: ignore[no-redef]  # noqa: E731
    _dispatch_mode: Callable[[], object] = lambda: None  # type: ignore[no-redef]  # noqa: E731

__all__ = ["default_store", "is_readable"]

_is_functional: Callable[[torch.Tensor], bool] = getattr(torch, "_is_functional_tensor", lambda tensor: True)


def is_readable(tensor: torch.Tensor) -> bool:
    """Whether values can be read without cost: they are on the host, and no transform or mode traces the tensor."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) is torch.Tensor
        and not torch.compiler.is_compiling()
        and not _is_functional(tensor)
        and not _is_wrapped(tensor)
        and _dispatch_mode() is None
    )


def default_store() -> distributed.Store | None:
    """Return the store of the default process group, or ``None`` if there is no store, for example with MPI."""
    try:
        from torch.distributed.distributed_c10d import _get_default_store
    except ImportError:
        return None
    return _get_default_store()
