"""What `skip_init` skips: filling memory of a parameter with random numbers."""

from __future__ import annotations

import weakref
from typing import Any

import torch  # noqa: TID253 (imported by skip_init only; its subject is torch)
from torch.nn.parameter import Parameter, is_lazy  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253

# Fill their first argument. A normal distribution that is cut off is made of uniform_ and erfinv_.
_FILLS = frozenset(
    {
        torch.Tensor.bernoulli_,
        torch.Tensor.cauchy_,
        torch.Tensor.erfinv_,
        torch.Tensor.exponential_,
        torch.Tensor.geometric_,
        torch.Tensor.log_normal_,
        torch.Tensor.normal_,
        torch.Tensor.random_,
        torch.Tensor.uniform_,
        torch.nn.init.kaiming_uniform_,
        torch.nn.init.normal_,
        torch.nn.init.uniform_,
    }
)


class SkipRandom(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, this thread's random fills of parameters do nothing. All else runs as always.

    Memory is known by its address: a program also writes to ``weight.data`` and to parts of a weight, which are
    tensors of their own. A tensor that shares no memory with a parameter is filled: it may be a buffer that no file
    holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owners: dict[int, weakref.ref[Any]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if self.owns(tensor):
                return tensor
        elif args and isinstance(args[0], Parameter) and not is_lazy(args[0]):
            self._owners[_address(args[0])] = weakref.ref(args[0])
        return func(*args, **kwargs)

    def owns(self, tensor: Any) -> bool:
        """Whether the tensor is a parameter, or shares memory with one that lives."""
        if isinstance(tensor, Parameter):
            return True
        address = _address(tensor)
        owner = self._owners.get(address, lambda: None)()
        # Memory of a parameter that is gone may be a buffer's by now.
        return address != 0 and owner is not None and _address(owner) == address


def _address(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr()) if tensor.layout is torch.strided else 0
