"""`assign_into`: make the tensors of a state dict the weights of a module, without a copy where that is safe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

from weightcache._spans import in_phase
from weightcache.errors import LoadError

from ._lazy_imports import import_torch


@in_phase("load")
def assign_into(
    module: Any, state_dict: Mapping[str, Any], *, allow_unexpected: Iterable[str] = (), strip_prefix: str = ""
) -> list[str]:
    """Make the tensors of ``state_dict`` the parameters and persistent buffers of ``module``.

    The module then has the values that ``module.load_state_dict(state_dict)`` gives it, but shares memory with the
    state dict. Only these tensors are copied: those whose strides differ from the module's, those that share memory in
    the state dict but not in the module, and those that share memory with others in the module. Tied parameters stay
    tied; the name of one of them is enough. ``requires_grad`` and ``training`` do not change; the device becomes the
    state dict's. Create optimizers afterwards: they keep the old parameters.

    Args:
        module: A ``torch.nn.Module``.
        state_dict: Name → tensor, as from `load_state_dict` or ``module.state_dict()``. It is not changed.
        allow_unexpected: Names or shell patterns of tensors that need not exist in the module.
        strip_prefix: Removed from the front of names, as in ``"module."``, before anything compares them.

    Returns:
        The names that were allowed and not used, in the order of the state dict.

    Raises:
        LoadError: Names are missing or unexpected, a shape or dtype differs, tied parameters have different values, or
            a part of the module is still on the meta device. ``problems`` lists all; the module is as before.
        TypeError: An argument has the wrong type.
        ImportError: PyTorch is not installed.

    Example:
        >>> assign_into(model, state_dict, allow_unexpected=["label_enc.*"], strip_prefix="module.")  # doctest: +SKIP
    """
    torch = import_torch()
    _refuse_wrong_types(torch, module, state_dict, allow_unexpected, strip_prefix)
    patterns = tuple(allow_unexpected)

    def allowed(name: str) -> bool:
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)

    prepared = _prepare(torch, module, state_dict, strip_prefix, allowed)
    return _assign(torch, module, prepared, allowed)


def _prepare(
    torch: Any, module: Any, state_dict: Mapping[str, Any], strip_prefix: str, allowed: Callable[[str], bool]
) -> dict[str, Any]:
    """Return the tensors to assign, by the names of the module; raise if they do not match it."""
    source = type(module).__name__
    given = _without_prefix(state_dict, strip_prefix, source)
    own = module.state_dict(keep_vars=True)
    problems = _match(torch, given, own)
    if problems:
        missing, unexpected = [name for name in own if name not in given], [name for name in given if name not in own]
        raise _mismatch(source, missing, [name for name in unexpected if not allowed(name)], problems, given)
    prepared = OrderedDict(given)
    prepared.update(_tensors_to_assign(torch, given, own))
    _copy_format_versions(state_dict, prepared, strip_prefix)
    return prepared


def _assign(torch: Any, module: Any, prepared: dict[str, Any], allowed: Callable[[str], bool]) -> list[str]:
    """Assign the tensors; return the allowed names that the module did not use. A failure leaves it as before."""
    source = type(module).__name__
    slots = _slots(module)
    with _rollback_on_error(slots, source):
        left = module.load_state_dict(prepared, strict=False, assign=True)
        # Only torch knows what is missing: hooks of modules may rename tensors that older versions saved.
        unexpected = [name for name in left.unexpected_keys if not allowed(name)]
        if left.missing_keys or unexpected:
            raise _mismatch(source, left.missing_keys, unexpected, [], prepared)
        _restore_ties(torch, slots)
        _refuse_meta(torch, module, prepared)
    return [name for name in left.unexpected_keys if allowed(name)]


def _refuse_wrong_types(torch: Any, module: Any, state_dict: Any, allow_unexpected: Any, strip_prefix: Any) -> None:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping of names to tensors, not {type(state_dict).__name__}")
    if isinstance(allow_unexpected, str) or not isinstance(allow_unexpected, Iterable):
        raise TypeError("allow_unexpected must be a list of names, as in ['label_enc.weight']")
    if not isinstance(strip_prefix, str):
        raise TypeError(f"strip_prefix must be a str, not {type(strip_prefix).__name__}")


def _refuse_meta(torch: Any, module: Any, given: Mapping[str, Any]) -> None:
    """Refuse a module with tensors on the meta device, unless the state dict has some too."""
    every = chain(module.named_parameters(), module.named_buffers())
    empty = [f"{name} is on the meta device and missing from the state dict" for name, value in every if value.is_meta]
    if empty and not any(torch.is_tensor(value) and value.is_meta for value in given.values()):
        hint = "build the module outside of torch.device('meta'), as in skip_init(), so that these are computed"
        raise LoadError(type(module).__name__, empty, hint=hint)


@contextmanager
def _rollback_on_error(slots: Iterable[_Slot], source: str) -> Iterator[None]:
    """Restore the tensors of the module if the block raises."""
    try:
        yield
    except BaseException as error:
        for slot in slots:
            if slot.now() is not slot.before:
                setattr(slot.owner, slot.name, slot.before)
        if type(error) is RuntimeError:  # from a module's own loading hook
            said = "; ".join(filter(None, map(str.strip, str(error).splitlines())))  # one problem, so one line
            raise LoadError(source, [said], hint="see how the module documents its checkpoints") from error
        raise


class _Slot(NamedTuple):
    """An attribute of a module that holds a parameter or buffer."""

    owner: Any
    name: str
    before: Any

    def now(self) -> Any:
        return getattr(self.owner, self.name)


def _slots(module: Any) -> list[_Slot]:
    return [
        _Slot(owner, name, tensor)
        for owner in module.modules()
        for name, tensor in chain(
            owner.named_parameters(recurse=False, remove_duplicate=False),
            owner.named_buffers(recurse=False, remove_duplicate=False),
        )
    ]


def _without_prefix(state_dict: Mapping[str, Any], prefix: str, source: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in state_dict.items():
        if not isinstance(name, str):
            raise TypeError(f"the keys of state_dict must be str, not {type(name).__name__}")
        stripped = name.removeprefix(prefix)
        if stripped in given:
            problem = f"both {prefix + stripped} and {stripped} are given"
            raise LoadError(source, [problem], hint="remove one of them from the state dict")
        given[stripped] = value
    return given


def _copy_format_versions(old: Mapping[str, Any], new: Any, prefix: str) -> None:
    """Copy the format version of each module, which torch keeps in ``_metadata``, to ``new``."""
    versions = getattr(old, "_metadata", None)
    if versions is not None:
        # A deep copy: torch writes `assign_to_params_buffers` into it, and the caller's next plain load would read it.
        new._metadata = {  # noqa: SLF001 (there is no public name)
            "" if f"{name}." == prefix else name.removeprefix(prefix): dict(version)
            for name, version in versions.items()
        }


def _match(torch: Any, given: dict[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Complete tied names in ``given``; return the differences in shape, dtype and between tied tensors."""
    problems = []
    first: dict[int, str] = {}
    for name, target in own.items():
        if not torch.is_tensor(target):  # a module's extra state
            continue
        if name in given:
            first.setdefault(id(target), name)
    for name, target in own.items():
        twin = first.get(id(target)) if torch.is_tensor(target) else None
        if twin is None:
            continue
        value = given.setdefault(name, given[twin])
        if not torch.is_tensor(value):
            problems.append(f"{name}: got a {type(value).__name__}, wanted a tensor")
        elif not torch.nn.parameter.is_lazy(target):
            if value.shape != target.shape:
                problems.append(f"shape of {name}: got {tuple(value.shape)}, wanted {tuple(target.shape)}")
            if value.dtype != target.dtype:
                problems.append(f"dtype of {name}: got {value.dtype}, wanted {target.dtype}")
            if twin != name and not _equal(torch, value, given[twin]):
                problems.append(f"{twin} and {name} are tied in the module, but differ in the state dict")
    return problems


def _equal(torch: Any, one: Any, other: Any) -> bool:
    if one is other or not torch.is_tensor(other) or one.shape != other.shape or one.dtype != other.dtype:
        return one is other
    if (one.data_ptr(), one.stride()) == (other.data_ptr(), other.stride()):
        return True
    # Compare bytes: NaN differs from itself as a number.
    return bool(torch.equal(*(value.detach().reshape(-1).contiguous().view(torch.uint8) for value in (one, other))))


def _tensors_to_assign(torch: Any, given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors to assign: detached, with the module's strides, and sharing memory only as in the module."""
    assigned: dict[str, Any] = {}
    spans = []
    twins: dict[int, str] = {}
    for name, target in own.items():
        if not torch.is_tensor(target) or name not in given:
            continue
        if twins.setdefault(id(target), name) != name:
            continue
        value = given[name].detach()  # a Parameter would be assigned itself, and two modules would own it
        assigned[name] = value
        if torch.nn.parameter.is_lazy(target) or {value.layout, target.layout} != {torch.strided} or value.is_meta:
            continue
        if _strides(value) != _strides(target):
            assigned[name] = torch.empty_like(target, device=value.device).copy_(value).detach()
        elif value.numel():
            reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
            begin = value.data_ptr()
            spans.append((str(value.device), begin, begin + (reach + 1) * value.element_size(), name))
    spans.sort()
    held = ("", 0)
    for device, begin, end, name in spans:
        if device == held[0] and begin < held[1]:
            assigned[name] = assigned[name].clone()
        else:
            held = (device, end)
    return {name: assigned[twins[id(own[name])]] for name in given if id(own.get(name)) in twins}


def _strides(tensor: Any) -> list[int]:
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def _restore_ties(torch: Any, slots: list[_Slot]) -> None:
    """Restore what assigning broke: slots that shared one tensor, and tensors that were views of each other."""
    by_tensor: dict[int, list[_Slot]] = {}
    by_memory: dict[int, set[int]] = {}
    for slot in slots:
        by_tensor.setdefault(id(slot.before), []).append(slot)
        if slot.before.layout is torch.strided and not torch.nn.parameter.is_lazy(slot.before):
            address = slot.before.untyped_storage().data_ptr()
            if address:  # 0 for an empty tensor and on the meta device
                by_memory.setdefault(address, set()).add(id(slot.before))
    seen_by_others = set().union(*(tensors for tensors in by_memory.values() if len(tensors) > 1))
    for tensor, held in by_tensor.items():
        now = next((value for slot in held if (value := slot.now()) is not slot.before), None)
        if now is None:
            continue
        if tensor in seen_by_others:
            with torch.no_grad():
                now = held[0].before.copy_(now)
        for slot in held:
            if slot.now() is not now:
                setattr(slot.owner, slot.name, now)


def _mismatch(
    source: str, missing: list[str], unexpected: list[str], problems: list[str], given: Mapping[str, Any]
) -> LoadError:
    hint = "the weights belong to another model or another version of it"
    lacking = set(missing)
    inner = [name for name, value in given.items() if isinstance(value, Mapping) and not lacking.isdisjoint(value)]
    prefixes = {name[: -len(end)] for name in unexpected for end in missing[:1] if name.endswith(f".{end}")}
    if inner:
        hint = f"the weights are one level below: pass state_dict[{inner[0]!r}]"
    elif prefixes:
        hint = f"the names have a prefix: pass strip_prefix={min(prefixes, key=len)!r}"
    elif unexpected and not missing and not problems:
        hint = "if these are not needed, list them in allow_unexpected"
    elif any(problem.startswith("dtype") for problem in problems):
        hint = "convert the module to the dtype of the weights first (module.to), or convert the weights"
    listed = [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected] + problems
    return LoadError(source, listed, hint=hint)
