"""Private names of torch, each guarded: torch renames them between releases (seen on 2.13)."""

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
    """Whether reading values costs nothing: they are on the host, and no transform or mode only traces."""
    return (
        tensor.device.type == "cpu"
        and type(tensor) is torch.Tensor
        and not torch.compiler.is_compiling()
        and not _is_functional(tensor)
        and not _is_wrapped(tensor)
        and _dispatch_mode() is None
    )


def default_store() -> distributed.Store | None:
    """The store through which the ranks of the default process group met; ``None`` where there is none, as with MPI."""
    try:
        from torch.distributed.distributed_c10d import _get_default_store
    except ImportError:
        return None
    return _get_default_store()
