"""What must be true of a call that says that it succeeded, looked at before a later call can heal what it left."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightcache import Manifest, NotCachedError, Tag, WeightCacheError, ensure, status, verify

if TYPE_CHECKING:
    from errno_injection import Case, World

NAMES = {"file": {"a"}, "directory": {"d"}, "copy": {"twin"}, "hf_cache": {"d"}}  # what `ensure` returns; else all
ABSENT = ("ENOENT", "ENOTDIR")  # with which the system says that a thing is not there: to believe it is right
REPORTS: dict[str, Callable[..., list[Any]]] = {"status": status, "verify": verify}


class WrongSuccessError(Exception):
    """A call said that it succeeded, and did not do what it promises."""


def check_success(world: World, case: Case, root: str, result: Any) -> None:
    """Check the result of a scenario in which a call failed, and what is on the disk.

    Raises:
        WrongSuccessError: It is not what the scenario does where nothing fails.
    """
    for path, data in promised_files(world, case.scenario, root, result).items():
        _has(path, data)
    if case.scenario in ("publish", "tags"):
        _is_a_hit(Manifest([result]), root)
    if case.scenario == "tags":
        _is_a_hit(Tag("tagged"), root)
        try:
            ensure(Tag("tagged", "old"), root=root, progress=False, offline=True)
        except NotCachedError:
            pass
        else:
            raise WrongSuccessError("the deleted tag still stands for a version")
    if case.error in ABSENT:
        return
    if case.scenario in ("prune", "prune_tags"):
        _only_deleted(root, result, with_tags=case.scenario == "prune_tags")
    if report := REPORTS.get(case.scenario):
        reason = os.strerror(getattr(errno, case.error))
        _same_states(result, report(world.manifest, root=root), (reason, "the disk is full"))
    if case.scenario == "tag_reads":
        path, tags, states = result
        if (path.name, len(tags), states) != ("large", 3, ["ready"]):
            raise WrongSuccessError(f"the tags say {result}")


def promised_files(world: World, scenario: str, root: str, result: Any) -> dict[str, bytes]:
    """Return the paths that a call returned or filled, with the bytes that each must have."""
    beside, found = os.path.dirname(root), dict[str, bytes]()
    if scenario in ("publish", "tags"):
        files = world.directory() if scenario == "publish" else {"x": world.small}
        return {f"{root}/{result.name}/{result.digest[:16]}/{path}": data for path, data in files.items()}
    if scenario == "move":
        if not result:
            raise WrongSuccessError("nothing was found to move")
        return {f"{beside}/taken/{path}": data for path, data in world.directory().items()}
    if isinstance(result, Mapping):
        if {*result} != NAMES.get(scenario, {"a", "s", "d"}):
            raise WrongSuccessError(f"it returned {sorted(result)}")
        for name, path in result.items():
            if name == "d":
                found |= {f"{path}/{each}": data for each, data in world.directory().items()}
            else:
                found[str(path)] = world.shared if name == "s" else world.large
    if scenario == "link":
        found |= {f"{beside}/links/d/{path}": data for path, data in world.directory().items()}
        found[f"{beside}/links/x/a"] = world.large
    if scenario == "hf_cache":
        hub = f"{beside}/hub/models--org--name"
        found |= {f"{hub}/snapshots/{'a' * 40}/{path}": data for path, data in world.directory().items()}
        found[f"{hub}/refs/main"] = b"a" * 40
    return found


def _has(path: str, data: bytes) -> None:
    if not os.path.isfile(path):
        raise WrongSuccessError(f"it succeeded, and there is no {path}")
    if Path(path).read_bytes() != data:
        raise WrongSuccessError(f"it succeeded, and {path} has wrong bytes")


def _is_a_hit(source: Manifest | Tag, root: str) -> None:
    try:
        [report] = ensure(source, root=root, progress=False, offline=True).report.values()
    except WeightCacheError as error:
        raise WrongSuccessError(f"{source} is not there: {error}") from None
    if report.outcome != "hit":
        raise WrongSuccessError(f"{source} is no hit, but {report.outcome}")


def _only_deleted(root: str, deleted: list[Path], *, with_tags: bool) -> None:
    """Check that a prune deleted every version that nothing keeps, and no other file."""
    left = [f"{folder}/{name}" for folder, _, names in os.walk(root) for name in names]
    if wrong := [each for each in left if not (with_tags and ("/tagged/" in each or "/tags/" in each))]:
        raise WrongSuccessError(f"prune says that it deleted {sorted(map(str, deleted))}, and left {wrong}")
    if with_tags and sum("/large" in each for each in left) != 1:
        raise WrongSuccessError(f"prune deleted what a tag keeps: there are {left}")
    if not deleted:
        raise WrongSuccessError("prune says that it deleted nothing")


def _same_states(found: list[Any], right: list[Any], reasons: tuple[str, ...]) -> None:
    for each, other in zip(found, right, strict=True):
        if each.state != other.state and not any(reason in each.detail for reason in reasons):
            raise WrongSuccessError(f"{each.name} is {other.state}, and not {each.state}: {each.detail}")
