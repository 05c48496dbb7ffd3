"""`assign_into`: a state dict becomes a module's weights, without a copy where that changes nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, NamedTuple

from weightcache.errors import LoadError

from ._torch import import_torch


def assign_into(
    module: Any, state_dict: Mapping[str, Any], *, allow_unexpected: Iterable[str] = (), strip_prefix: str = ""
) -> list[str]:
    """Make the tensors of ``state_dict`` the parameters and persistent buffers of ``module``.

    The module has afterwards what ``module.load_state_dict(state_dict)`` gives it, and shares the tensors' memory
    instead of copying them: write to one, and the other changes. Copied is only what would behave in another way
    otherwise: a tensor whose strides are not the module's, one that shares memory with another tensor of the state dict
    while the two are apart in the module, and one whose memory in the module other parameters or buffers share.
    Parameters that are tied in the module stay tied, and the name of one of them is enough. ``requires_grad`` and
    ``training`` stay as they are, and the device becomes the state dict's. What refers to the old parameters without
    being part of the module, such as an optimizer, keeps the old ones: make it afterwards.

    Args:
        module: A ``torch.nn.Module``.
        state_dict: Name → tensor, as `load_state_dict` or ``module.state_dict()`` returns it. It is not changed.
        allow_unexpected: Names, or patterns as of a shell, of tensors that may be there without a place in the module.
        strip_prefix: What is taken off the front of every name that begins with it, as in ``"module."``; the names of
            all else here are those after that.

    Returns:
        The names that were allowed and not used, in the order of the state dict.

    Raises:
        LoadError: A name of the module is missing, a name has no place in it and is not allowed, a shape or dtype
            differs, tied parameters have different values, or a part of the module is still on the meta device.
            ``problems`` lists all of them, and the module has the parameters and buffers it had.
        TypeError: ``module`` is no module, or the state dict or the names are of another type.
        ImportError: PyTorch is not installed.

    Example:
        >>> assign_into(model, state_dict, allow_unexpected=["label_enc.*"], strip_prefix="module.")  # doctest: +SKIP
    """
    torch = import_torch()
    _refuse_wrong_types(torch, module, state_dict, allow_unexpected, strip_prefix)
    patterns = tuple(allow_unexpected)

    def allowed(name: str) -> bool:
        return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)

    source = type(module).__name__
    given = _without_prefix(state_dict, strip_prefix, source)
    own = module.state_dict(keep_vars=True)
    problems = _fit(torch, given, own)
    if problems:
        missing, unexpected = [name for name in own if name not in given], [name for name in given if name not in own]
        raise _misfit(source, missing, [name for name in unexpected if not allowed(name)], problems, given)
    prepared = OrderedDict(given)
    prepared.update(_apart(torch, given, own))
    _carry_versions(state_dict, prepared, strip_prefix)

    places = _places(module)
    with _undone_on_error(places, source):
        left = module.load_state_dict(prepared, strict=False, assign=True)
        # Only torch knows what is missing: modules may have hooks that rename what older versions saved.
        unexpected = [name for name in left.unexpected_keys if not allowed(name)]
        if left.missing_keys or unexpected:
            raise _misfit(source, left.missing_keys, unexpected, [], given)
        _tie(torch, places)
        _refuse_empty(torch, module, given)
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


def _refuse_empty(torch: Any, module: Any, given: Mapping[str, Any]) -> None:
    """Refuse a module of which a part is still without memory, unless the state dict is so itself."""
    every = chain(module.named_parameters(), module.named_buffers())
    empty = [f"{name} is on the meta device, and not in the state dict" for name, value in every if value.is_meta]
    if empty and not any(torch.is_tensor(value) and value.is_meta for value in given.values()):
        hint = "build the module outside of torch.device('meta'), as in skip_init(), so that these are computed"
        raise LoadError(type(module).__name__, empty, hint=hint)


@contextmanager
def _undone_on_error(places: Iterable[_Place], source: str) -> Iterator[None]:
    """Give the module what it had if anything goes wrong."""
    try:
        yield
    except BaseException as error:
        for place in places:
            if place.now() is not place.before:
                setattr(place.owner, place.name, place.before)
        if type(error) is RuntimeError:  # what torch says of a module's own loading
            raise LoadError(source, [str(error)], hint="see the module's own documentation of its files") from error
        raise


class _Place(NamedTuple):
    """Where a module holds a parameter or buffer."""

    owner: Any
    name: str
    before: Any

    def now(self) -> Any:
        return getattr(self.owner, self.name)


def _places(module: Any) -> list[_Place]:
    return [
        _Place(owner, name, tensor)
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
            raise TypeError(f"state_dict must have names, not {type(name).__name__}")
        stripped = name.removeprefix(prefix)
        if stripped in given:
            problem = f"both {prefix + stripped} and {stripped} are given"
            raise LoadError(source, [problem], hint="leave one of them out of the state dict")
        given[stripped] = value
    return given


def _carry_versions(old: Mapping[str, Any], new: Any, prefix: str) -> None:
    """Give ``new`` what torch keeps beside the names: the version of each module's format, by the module's name."""
    versions = getattr(old, "_metadata", None)
    if versions is not None:
        # Copied to the bottom: torch notes in it that it assigns, and the caller's next plain load would assign too.
        new._metadata = {  # noqa: SLF001 (it has no other name)
            "" if f"{name}." == prefix else name.removeprefix(prefix): dict(version)
            for name, version in versions.items()
        }


def _fit(torch: Any, given: dict[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Give each tied name its twin's tensor; return what differs in shape, dtype or between twins."""
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
            if twin != name and not _same(torch, value, given[twin]):
                problems.append(f"{twin} and {name} are one tensor in the module, and differ in the state dict")
    return problems


def _same(torch: Any, one: Any, other: Any) -> bool:
    if one is other or not torch.is_tensor(other) or one.shape != other.shape or one.dtype != other.dtype:
        return one is other
    if (one.data_ptr(), one.stride()) == (other.data_ptr(), other.stride()):
        return True
    # As bytes: NaN is equal to itself here.
    return bool(torch.equal(*(value.detach().reshape(-1).contiguous().view(torch.uint8) for value in (one, other))))


def _apart(torch: Any, given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors to assign: detached, laid out as the module's, and sharing memory only where they may."""
    assigned: dict[str, Any] = {}
    spans = []
    twins: dict[int, str] = {}
    for name, target in own.items():
        if not torch.is_tensor(target) or name not in given:
            continue
        if twins.setdefault(id(target), name) != name:
            continue
        value = given[name].detach()  # of torch's own kind: a Parameter would become the module's, and belong to two
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


def _tie(torch: Any, places: list[_Place]) -> None:
    """Restore what assigning broke: places that held one tensor, and tensors that were views of each other."""
    by_tensor: dict[int, list[_Place]] = {}
    by_memory: dict[int, set[int]] = {}
    for place in places:
        by_tensor.setdefault(id(place.before), []).append(place)
        if place.before.layout is torch.strided and not torch.nn.parameter.is_lazy(place.before):
            address = place.before.untyped_storage().data_ptr()
            if address:  # none: empty, or on the meta device
                by_memory.setdefault(address, set()).add(id(place.before))
    seen_by_others = set().union(*(tensors for tensors in by_memory.values() if len(tensors) > 1))
    for tensor, held in by_tensor.items():
        now = next((value for place in held if (value := place.now()) is not place.before), None)
        if now is None:
            continue
        if tensor in seen_by_others:
            with torch.no_grad():
                now = held[0].before.copy_(now)
        for place in held:
            if place.now() is not now:
                setattr(place.owner, place.name, now)


def _misfit(
    source: str, missing: list[str], unexpected: list[str], problems: list[str], given: Mapping[str, Any]
) -> LoadError:
    hint = "these weights are of another model or another version of it"
    inner = [name for name, value in given.items() if isinstance(value, Mapping) and set(missing) & set(value)]
    prefixes = {name[: -len(end)] for name in unexpected for end in missing[:1] if name.endswith(f".{end}")}
    if inner:
        hint = f"the weights are one level below: pass state_dict[{inner[0]!r}]"
    elif prefixes:
        hint = f"the names have something in front of them: strip_prefix={min(prefixes, key=len)!r}"
    elif unexpected and not missing and not problems:
        hint = "if these may be left out, name them in allow_unexpected"
    elif any(problem.startswith("dtype") for problem in problems):
        hint = "make the module's dtype that of the weights first (module.to), or convert the weights"
    listed = [f"missing: {name}" for name in missing] + [f"unexpected: {name}" for name in unexpected] + problems
    return LoadError(source, listed, hint=hint)
