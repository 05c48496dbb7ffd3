"""Check that one tensor stays within its storage, for each tensor layout."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Any

_PACKED = {"quint4x2": 2, "quint2x4": 4}  # elements of one byte


def is_simple(torch: Any, tensor: Any) -> bool:
    """Whether it is a tensor of numbers with strides, and of no other kind: nearly all that files have."""
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
        return False
    return not (tensor.is_quantized or tensor.is_nested or tensor.is_meta)


def fits(tensor: Any, size: int) -> bool:
    """Whether a strided tensor, whose elements are not packed, stays within its storage of ``size`` bytes."""
    shape, strides, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
    if offset < 0 or min(shape, default=0) < 0 or min(strides, default=0) < 0:
        return False
    needed: int = _reach(shape, strides, offset) * tensor.element_size()
    return needed <= size


def bounds_problem(torch: Any, tensor: Any) -> str:
    """Return what is wrong with ``tensor``, as "holds a …"; an empty string if nothing is."""
    if tensor.is_meta:
        return ""
    if type(tensor) is not torch.Tensor:
        tensor = tensor.detach()
    if tensor.layout is torch.strided:
        if type(tensor) is torch.Tensor and tensor.is_nested:
            return _nested_fault(tensor)
        return _strided_fault(torch, tensor)
    if tensor.layout is torch.jagged:
        return _jagged_fault(torch, tensor)
    return _sparse_fault(torch, tensor)


def _strided_fault(torch: Any, tensor: Any) -> str:
    try:
        size = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # a subclass without memory of its own: its inner tensors are checked
        return ""
    shape, strides, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    is_quantized = tensor.is_quantized
    packed = _PACKED.get(str(tensor.dtype).removeprefix("torch.")) if is_quantized else None
    if packed:  # each row starts at a new byte
        needed = offset + prod(shape[:-1]) * -(-shape[-1] // packed) if shape else offset + 1
        if not tensor.is_contiguous():
            return f"holds {_in_words(tensor)} and strides {strides}, which packed tensors cannot have"
        is_inside = needed <= size and offset >= 0 and min(shape + strides, default=0) >= 0
    else:
        is_inside = fits(tensor, size)
    if not is_inside:
        where = f"strides {strides} and offset {offset}"
        return f"holds {_in_words(tensor)}, {where}, which reaches beyond its storage of {size} bytes"
    return _channel_fault(torch, tensor) if is_quantized else ""


def _in_words(tensor: Any) -> str:
    return f"a{' quantized' if tensor.is_quantized else ''} tensor of shape {tuple(tensor.shape)}"


def _reach(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> int:
    """Return how many elements of its storage a tensor needs. Integers of Python do not overflow."""
    if 0 in shape:
        return 0
    for size, stride in zip(shape, strides, strict=True):
        offset += (size - 1) * stride
    return offset + 1


def _channel_fault(torch: Any, tensor: Any) -> str:
    if tensor.qscheme() not in {torch.per_channel_affine, torch.per_channel_affine_float_qparams}:
        return ""
    axis = tensor.q_per_channel_axis()
    for name, numbers in (
        ("scales", tensor.q_per_channel_scales()),
        ("zero points", tensor.q_per_channel_zero_points()),
    ):
        wanted = tensor.shape[axis] if 0 <= axis < tensor.dim() else None
        if numbers.numel() != wanted or _strided_fault(torch, numbers):
            return f"holds {_in_words(tensor)} with {numbers.numel()} {name} along dimension {axis}"
    return ""


def _nested_fault(tensor: Any) -> str:
    """Check the parts of a nested tensor: one buffer, with shape, strides and offset for each part."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    shapes, strides = tensor._nested_tensor_size().tolist(), tensor._nested_tensor_strides().tolist()  # noqa: SLF001
    offsets = tensor._nested_tensor_storage_offsets().tolist()  # noqa: SLF001
    if not len(shapes) == len(strides) == len(offsets):
        return "holds a nested tensor with inconsistent numbers of shapes, strides and offsets"
    for shape, stride, offset in zip(shapes, strides, offsets, strict=True):
        if min([offset, *shape, *stride]) < 0 or _reach(tuple(shape), tuple(stride), offset) > size:
            return f"holds a nested tensor with a part of shape {tuple(shape)} that reaches beyond its storage"
    return ""


def _jagged_fault(torch: Any, tensor: Any) -> str:
    """Check the parts of a jagged tensor: rows of its values between two offsets."""
    offsets, lengths, values = tensor.offsets(), tensor.lengths(), tensor.values()
    for part in (offsets, lengths, values):
        if part is not None and (fault := bounds_problem(torch, part)):
            return fault
    rows = values.shape[tensor._ragged_idx - 1]  # noqa: SLF001 (there is no public name)
    bounds = offsets.tolist()
    sizes = [end - begin for begin, end in pairwise(bounds)]
    if lengths is not None and len(lengths) == len(sizes):
        sizes = [size if 0 <= own <= size else -1 for own, size in zip(lengths.tolist(), sizes, strict=True)]
    elif lengths is not None:
        sizes = [-1]
    if not bounds or bounds[0] < 0 or bounds[-1] > rows or min(sizes, default=0) < 0:
        return f"holds a jagged tensor of {rows} rows with offsets that reach beyond them"
    return ""


def _sparse_fault(torch: Any, tensor: Any) -> str:
    """Build the tensor again with the checks that PyTorch skips when it loads a file."""
    what = f"a sparse tensor of shape {tuple(tensor.shape)}"
    by_rows = tensor.layout in {torch.sparse_csr, torch.sparse_bsr}
    if tensor.layout is torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]  # noqa: SLF001 (the public methods need a coalesced tensor)
    elif by_rows:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        return f"holds a tensor of layout {tensor.layout}, which is not supported"
    for part in parts:
        if fault := bounds_problem(torch, part):
            return fault
    try:
        if tensor.layout is torch.sparse_coo:
            coalesced = tensor.is_coalesced() or None
            torch.sparse_coo_tensor(*parts, tensor.shape, check_invariants=True, is_coalesced=coalesced)
        else:
            torch.sparse_compressed_tensor(*parts, tensor.shape, layout=tensor.layout, check_invariants=True)
    except (RuntimeError, ValueError, IndexError) as error:
        return f"holds {what} whose indices or values do not fit it: {str(error).partition(chr(10))[0]}"
    return ""
