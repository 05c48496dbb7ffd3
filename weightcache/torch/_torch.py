"""The optional packages, imported when they are first needed, so that a prefetch can start before them."""

from __future__ import annotations

from typing import Any

# Before it, a crafted file could run code in spite of weights_only=True: CVE-2025-32434 (fixed in 2.6) and
# CVE-2026-24747 (fixed in 2.10).
OLDEST_SAFE_TORCH = (2, 10)

_INSTALL = "pip install 'weightcache[torch]'"


def import_torch() -> Any:
    """Return the module ``torch``, or say what to install."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"weightcache.torch needs PyTorch ({error}): {_INSTALL}", name="torch") from error
    return torch


def import_safetensors() -> Any:
    """Return the module ``safetensors.torch``, or say what to install."""
    try:
        import safetensors.torch
    except ImportError as error:
        message = f"a .safetensors file needs the package safetensors ({error}): {_INSTALL}"
        raise ImportError(message, name="safetensors") from error
    return safetensors.torch


def require_safe_unpickling(torch: Any) -> None:
    """Raise ``ImportError`` if this PyTorch can be made to run code by a file that holds a pickle."""
    major, minor = (int(number) for number in torch.__version__.split(".")[:2])
    if (major, minor) < OLDEST_SAFE_TORCH:
        raise ImportError(
            f"PyTorch {torch.__version__} can be made to run code by a crafted checkpoint, even when it loads weights "
            "only (CVE-2026-24747): pip install 'torch>=2.10', or convert the file to .safetensors",
            name="torch",
        )
