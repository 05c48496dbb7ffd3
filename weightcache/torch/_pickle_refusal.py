"""The error for a pickle that PyTorch refused to load: which imports it needs, and how to allow them."""

from __future__ import annotations

import os
import re
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from keyword import iskeyword
from typing import TYPE_CHECKING, Any, NamedTuple

from weightcache._message_text import listed
from weightcache.errors import LoadError

from ._pickle_scan import PickleSummary, disallowed
from ._unsupported_formats import protocol_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Names that run commands, load code, or give access to any other name. PyTorch itself never allows the first four.
_HARMFUL = frozenset(
    """
    nt os posix sys subprocess commands popen2 pty runpy importlib code codeop marshal pickle _pickle dill cloudpickle
    joblib shutil socket ctypes multiprocessing webbrowser timeit profile cProfile pdb bdb operator _operator inspect gc
    threading _thread builtins.eval builtins.exec builtins.compile builtins.open builtins.getattr builtins.setattr
    builtins.delattr builtins.__import__ builtins.globals builtins.locals builtins.vars builtins.breakpoint
    builtins.input io.open _io.open _io.FileIO types.CodeType types.FunctionType types.MethodType torch.load
    torch.hub.load torch.jit.load torch.serialization.load numpy.load numpy.testing._private.utils.runstring
    """.split()  # noqa: SIM905 (a table)
)

_MOST_NEEDED = 50  # classes and functions that one call may allow; for each, directories are searched


class _Location(NamedTuple):
    """Where a class or function that a file names is in this Python.

    Attributes:
        module: The module to import.
        name: The name in this module.
        plain: Whether PyTorch accepts it without the name in the file; else ``safe_globals`` needs a pair.
    """

    module: str
    name: str
    plain: bool


def refusal(torch: Any, path: str, said: str, pickled: PickleSummary) -> LoadError:
    """Return the error for a file that PyTorch refused with ``weights_only=True``.

    Args:
        torch: The module.
        path: The file.
        said: The message of PyTorch. Its first global counts even if the pickle cannot be scanned.
        pickled: Result of scanning the pickle.
    """
    if modules := re.findall(
        r"``([\w.]+)``", said.partition("must be imported")[0] if "must be imported" in said else ""
    ):
        problem = f"holds tensors that need the import of {' and '.join(modules)}"
        return LoadError(path, [problem], hint=f"import it first: `import {', '.join(modules)}`")
    if pickled.protocol > 2 and (operand := re.search(r"Unsupported operand \d+", said)):
        return protocol_error(path, pickled.protocol, f" ({operand[0]})")
    needed = disallowed(torch, pickled.names)
    found = re.search(r"[Cc]an only (?:build|create)[\s\S]*<class '([\w.]+)'>", said)
    if found is None and not needed:  # the scan failed
        found = re.search(r"GLOBAL ([^\s`]+)", said)
    if found and not any(".".join(pair) == found[1] for pair in needed):
        module, _, name = found[1].rpartition(".")
        needed.append((module or "builtins", name))
    classes = _dtype_classes(torch, pickled)
    if not needed and not classes:
        return _unsupported_operation(path, said)
    names = sorted({".".join(pair) for pair in needed} | set(classes))
    problems = [f"needs {_quoted(name)}, which is not weights: importing it could run any code" for name in names]
    return LoadError(path, problems, hint=_hint(path, needed, classes))


def _unsupported_operation(path: str, said: str) -> LoadError:
    """Return the error for a pickle operation that PyTorch never supports with ``weights_only=True``."""
    reason = next(filter(None, map(str.strip, said.partition("WeightsUnpickler error: ")[2].splitlines())), said)
    hint = "save it again with torch.save and the default pickle_protocol"
    if filled := re.search(r"Can only (?:SETITEM|append|extend).*<class '([\w.]+)'>", said):
        hint = f"this cannot be allowed: replace {filled[1]} by a plain dict or list, and save the file again"
    return LoadError(path, [f"holds a pickle that does not contain only weights: {reason:.1000}"], hint=hint)


def _hint(path: str, needed: Sequence[tuple[str, str]], classes: dict[str, str]) -> str:
    harmful = sorted(".".join(pair) for pair in needed if _harmful(*pair))
    if harmful:
        names = listed([*map(_quoted, harmful)])
        return f"{names} can do harm and is never part of weights: do not load this file"
    if len(classes) + len(needed) > _MOST_NEEDED:
        what = "a file of weights needs few classes or functions"
        return f"{what}: load it where it was saved, and save only its state dict"
    entries, modules, lacking = dict.fromkeys(classes.values()), {"torch"}, []
    for module, name in needed:
        found = _find(module, name)
        if isinstance(found, str):
            lacking.append(found)
            continue
        modules.add(found.module)
        here = name if found.module == "builtins" else f"{found.module}.{found.name}"
        entries[here if found.plain else f'({here}, "{module}.{name}")'] = None
    if lacking:
        reasons = listed(lacking, separator="; ")
        return f"{reasons}. Load the file with the package versions that saved it, and save only its state dict"
    modules |= {"numpy"} if classes else set()
    imports = ", ".join(sorted(modules - {"builtins"}))
    return (
        "allowing a class or function lets its code run. If you trust the source of the file and know what these do, "
        "allow them for one call:\n"
        f"    `import {imports}; from weightcache.torch import load_state_dict`\n"
        f"    `with torch.serialization.safe_globals([{', '.join(sorted(entries))}]): load_state_dict({path!r})`"
    )


def _harmful(module: str, name: str) -> bool:
    return module.partition(".")[0] in _HARMFUL or f"{module}.{name}" in _HARMFUL


def _quoted(name: str) -> str:
    return name if len(name) <= 200 and all(part.isidentifier() for part in name.split(".")) else f"{name!r:.200}"


def _dtype_classes(torch: Any, pickled: PickleSummary) -> dict[str, str]:
    """Return the dtype classes of numpy that must be allowed too, each with an expression for it.

    A file does not name these classes: it calls ``numpy.dtype``. If numpy is not imported, the result is empty.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return {}
    allowed = [entry[0] if isinstance(entry, tuple) else entry for entry in torch.serialization.get_safe_globals()]
    classes: dict[str, str] = {}
    for code in pickled.dtypes:
        try:
            kind = type(numpy.dtype(code))
        except TypeError:
            continue
        if kind in allowed:
            continue
        public = getattr(getattr(numpy, "dtypes", None), kind.__name__, None) is kind
        expression = f"numpy.dtypes.{kind.__name__}" if public else f"type(numpy.dtype({code!r}))"
        classes.setdefault(f"numpy.dtypes.{kind.__name__}", expression)
    return classes


def _find(module: str, name: str) -> _Location | str:
    """Return where it is in this Python, or why it cannot be allowed. Nothing is imported: that could run any code."""
    if not all(part.isidentifier() and not iskeyword(part) for part in [*module.split("."), *name.split(".")]):
        return f"{_quoted(f'{module}.{name}')} cannot be allowed: it is not a valid Python name"
    reasons = []
    for home, own in _candidate_names(module, name):
        there = _lookup(home, own)
        if isinstance(there, _Location):
            return there._replace(plain=there.plain and (home, own) == (module, name))
        reasons.append(there)
    return f"{_quoted(f'{module}.{name}')} cannot be allowed: {reasons[0]:.300}"


def _candidate_names(module: str, name: str) -> Iterable[tuple[str, str]]:
    """Yield the names that it may have in this Python, the most likely first."""
    if (module, name) == ("pathlib", "WindowsPath") and os.name != "nt":
        yield "pathlib", "PureWindowsPath"  # WindowsPath cannot be created on this system
    elif module == "pathlib._local":  # the module of these classes in Python 3.13
        yield "pathlib", name
    elif module.startswith("numpy.core."):
        yield module.replace("numpy.core.", "numpy._core.", 1), name
        yield module, name
    elif module.startswith("numpy._core."):
        yield module, name
        yield module.replace("numpy._core.", "numpy.core.", 1), name
    else:
        yield module, name


def _lookup(module: str, name: str) -> _Location | str:
    loaded = sys.modules.get(module)
    if loaded is None:
        return _Location(module, name, plain=False) if _importable(module) else _missing_reason(module)
    value: Any = loaded
    for part in name.split("."):
        known = getattr(value, "__dict__", {})
        if part not in known:
            lazy = value is loaded and "__getattr__" in known  # __getattr__ may create the name
            if lazy and module.partition(".")[0] not in {"numpy", "torch"}:
                return _Location(module, name, plain=False)
            return f"{module} has no {name}{_version(module)}"
        value = known[part]
        if not isinstance(value, type):
            break
    return _Location(
        module,
        name,
        plain=f"{_attribute(value, '__module__')}.{_attribute(value, '__qualname__')}" == f"{module}.{name}",
    )


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except AttributeError:
        return None


def _importable(module: str) -> bool:
    """Whether an import would find the module; neither it nor its parents are imported."""
    top, *below = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):  # a module without a file, such as __main__
        return top in sys.modules and not below
    for i in range(len(below)):
        if spec is None or spec.submodule_search_locations is None:
            return False
        spec = PathFinder.find_spec(".".join([top, *below[: i + 1]]), spec.submodule_search_locations)
    return spec is not None


def _missing_reason(module: str) -> str:
    top = module.partition(".")[0]
    if top in sys.modules or _importable(top):
        return f"{top} has no module {module}{_version(module)}"
    return f"the module {top} is not installed here"


def _version(module: str) -> str:
    version = getattr(sys.modules.get(module.partition(".")[0]), "__version__", None)
    return f" (version {version})" if isinstance(version, str) else ""
