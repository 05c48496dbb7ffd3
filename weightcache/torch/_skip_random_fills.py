"""The torch function mode behind `skip_init`: random fills of parameters do nothing."""

from __future__ import annotations

import weakref
from typing import Any

import torch  # noqa: TID253 (imported by skip_init only; its subject is torch)
from torch.nn.parameter import Parameter, is_lazy  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253

# Functions that fill their first argument. trunc_normal_ uses uniform_ and erfinv_.
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
    """A mode in which random fills of parameters do nothing, in this thread. All other calls run as usual.

    Parameters are recognized by the address of their memory, because programs also fill ``weight.data`` and slices of
    a weight, which are other tensor objects. Tensors that share no memory with a parameter are filled: they may be
    buffers that no file contains.
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
        """Whether the tensor is a parameter, or shares memory with a live one."""
        if isinstance(tensor, Parameter):
            return True
        address = _address(tensor)
        owner = self._owners.get(address, lambda: None)()
        # After a parameter is deleted, a buffer may get its memory.
        return address != 0 and owner is not None and _address(owner) == address


def _address(tensor: Any) -> int:
    return int(tensor.untyped_storage().data_ptr()) if tensor.layout is torch.strided else 0
