"""The tests mirror the code: a module has tests in the folder of its name, and no test file is too long."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "weightcache"
LINES = 520

# Modules that no test in their folder imports, and where their tests are instead.
ELSEWHERE = {
    "_coordination/background_readers": "tests/prefetch/test_pause.py",  # a prefetch is the reader that pauses
    "_engine/adopt": "tests/cli/test_adopt.py",
    "_engine/existing_weights": "tests/cli/test_adopt.py",
    "_engine/commit_evidence": "tests/coordination/test_committed_state.py",
    "_engine/ensure": "tests/test_api.py",
    "_engine/run_in_thread": "tests/test_api.py",  # `aensure`
    "_engine/stale_lock_files": "tests/coordination/test_lock.py",
    "_engine/ensure_options": "tests/test_api.py",
    "_engine/plan": "tests/engine/test_dry_run.py",
    "_engine/status": "tests/store/test_inspect.py",
    "_engine/verify": "tests/store/test_file_operations.py",
    "_frozen": "tests/test_errors.py",
    "_pinning/bounds": "tests/pinning/test_api.py",
    "_pinning/new_entry": "tests/pinning/test_api.py",
    "_pinning/upgrade": "tests/cli/test_pin_upgrade.py",
    "_prefetch/api": "tests/prefetch/test_prefetcher.py",  # called by its public name
    "_prefetch/blocks": "tests/torch/test_tensor_selection.py",  # which plans them
    "_prefetch/range_reader": "tests/torch/test_iter_tensors.py",
    "_runtime/atomic_replace": "tests/store/test_journal.py",  # receipts are written with it
    "_runtime/unannounced_write_check": "tests/coordination/test_volume.py",
    "_transfer/http_environment": "tests/transfer/test_error_response.py",
    "_transfer/failure": "tests/transfer/test_download.py",
    "_transfer/byte_tracking": "tests/transfer/test_scheduler.py",
    "_transfer/file_states": "tests/transfer/test_scheduler.py",
    "_transfer/slow_connection": "tests/transfer/test_workers.py",
    "_views/weights": "tests/test_api.py",
    "cli/add_from_dir": "tests/cli/test_add.py",
    "cli/dry_run": "tests/engine/test_dry_run.py",
    "cli/shared_flags": "tests/cli/test_command_spec.py",
    "cli/pinning": "tests/cli/test_pin.py",
    "cli/prune": "tests/cli/test_main.py",
    "_pinning/shard_check": "tests/store/test_shard_index.py",
    "cli/pin_staging": "tests/cli/test_add.py",
    "cli/status": "tests/cli/test_main.py",
    "cli/verify": "tests/cli/test_main.py",
    "manifest/model": "tests/manifest/test_parse.py",
    "reports": "tests/test_api.py",
    "_strict_json": "tests/torch/test_safetensors_header.py",
    "torch/_skip_random_fills": "tests/torch/test_skip_init.py",
    "modal/deployed_tag": "tests/modal/test_weight_volume.py",
}


def modules() -> list[str]:
    return sorted(
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    )


def folder_of(module: str) -> Path:
    return TESTS.joinpath(*(part.lstrip("_") for part in module.split("/")[:-1]))


@cache
def imports(path: Path) -> frozenset[str]:
    """The full names of what a file imports."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def has_tests(module: str) -> bool:
    """Whether ``_store/inspect`` has ``tests/store/test_inspect.py``, or another test in that folder imports it."""
    folder, dotted = folder_of(module), f"weightcache.{module.replace('/', '.')}"
    own = folder / f"test_{module.rpartition('/')[2].lstrip('_')}.py"
    return own.exists() or any(dotted in imports(path) for path in folder.glob("test_*.py"))


def test_no_test_file_is_too_long() -> None:
    lines = {str(path.relative_to(TESTS)): len(path.read_text("utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > LINES} == {}


def test_no_test_file_imports_another() -> None:
    tests = {path.stem for path in TESTS.rglob("test_*.py")}
    assert {str(path): found for path in TESTS.rglob("*.py") if (found := imports(path) & tests)} == {}


@pytest.mark.parametrize("module", modules())
def test_every_module_has_tests_in_the_folder_that_mirrors_its_own(module: str) -> None:
    assert has_tests(module) or module in ELSEWHERE, f"write tests/{folder_of(module).name}/test_….py, or say where"


def test_nothing_is_listed_without_need() -> None:
    assert [name for name in ELSEWHERE if name not in modules() or has_tests(name)] == []
    assert [where for where in ELSEWHERE.values() if not (TESTS.parent / where).exists()] == []
