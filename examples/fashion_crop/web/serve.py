"""The service on this machine: `make fashion`.

With stand-in weights it needs no internet: an origin on loopback serves them, and they come by the way of the real
ones, from a manifest to `ensure` to a loaded model. With ``--weights real`` it is the manifest that is deployed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import uvicorn

from origin import Origin

from .backend import SEGMENTERS, start
from .service import create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .backend import Backend

EXAMPLE = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fashion_crop.web.serve", description="Serve fashion-crop here.")
    parser.add_argument("--weights", choices=["stand-in", "real"], default="stand-in")
    parser.add_argument("--segmenter", choices=SEGMENTERS, default="large", help="size of SAM 2; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="0 for a free one; default: 8000")
    parser.add_argument("--cache", type=Path, default=Path(".cache/fashion"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    try:
        listener = _listen(arguments.port)
    except (OSError, OverflowError) as error:
        print(f"port {arguments.port} cannot be had ({error}): choose another, as in PORT=8001", file=sys.stderr)
        return 1
    load = load_stand_ins if arguments.weights == "stand-in" else load_real_weights
    with listener:
        return _serve(lambda: load(arguments.cache, arguments.segmenter), listener)


def load_stand_ins(cache: Path, segmenter: str = "large") -> Backend:
    """Load the stand-ins, of SAM 2 large or tiny; the first call makes them, which takes some seconds more."""
    folder = stand_ins_in(cache)
    with Origin() as origin, TemporaryDirectory() as place:
        manifest = _served(folder, origin, Path(place))
        return start(manifest, root=cache / "stand-in-root", segmenter=segmenter, stand_ins=True)


def load_real_weights(cache: Path, segmenter: str = "large") -> Backend:
    """Load the published checkpoints; the first call downloads them, 1.6 GB with SAM 2 large."""
    return start(EXAMPLE / "weights.toml", root=cache / "real-root", segmenter=segmenter)


def _listen(port: int) -> socket.socket:
    with ExitStack() as undo:
        listener = undo.enter_context(socket.socket())
        # Else a port is blocked for a minute after its use.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        undo.pop_all()
    return listener


def _serve(load: Callable[[], Backend], listener: socket.socket) -> int:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    failed = False

    def told() -> Backend:
        nonlocal failed
        try:
            backend = load()
        except BaseException:
            failed = server.should_exit = True
            raise
        note = ", with stand-in weights: what they find means nothing" if backend.stand_ins else ""
        print(f"ready after {backend.phases['ready']:.1f} s: {url}{note}", flush=True)
        return backend

    # A photo that is being worked on when a signal ends the server is finished: there is no timeout here.
    server = uvicorn.Server(uvicorn.Config(create_app(told), log_level="warning"))
    print(f"the models are being loaded; the page is at {url} already", flush=True)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return int(failed)


def stand_ins_in(cache: Path, size: str = "stand-in") -> Path:
    """Return the folder of the stand-ins (see `models.stand_ins`); make them if this version of them is not there."""
    makers = [EXAMPLE / "benchmarks" / "stand_ins.py", *sorted((EXAMPLE / "models").glob("*.py"))]
    sources = b"".join(path.read_bytes() for path in makers)
    folder = cache / f"{'full-size-' if size == 'full' else ''}stand-ins-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not folder.is_dir():
        begun = cache / f"{folder.name}.{os.getpid()}"
        # In a process of its own: here torch is to be imported beside the reading, as in every cold start.
        command = [sys.executable, "-m", "fashion_crop.benchmarks.stand_ins", "--size", size, str(begun)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with suppress(OSError):  # another server was faster, and its stand-ins are the same
            begun.rename(folder)
        shutil.rmtree(begun, ignore_errors=True)
    return folder


def _served(folder: Path, origin: Origin, place: Path) -> Path:
    """Let an origin serve the stand-ins, and return a manifest with its URLs."""
    files = folder / "files"
    for path in files.rglob("*"):
        if path.is_file():
            origin.put(f"/{path.relative_to(files).as_posix()}", path)
    return manifest_at(origin.url("/"), folder, place)


def manifest_at(url: str, folder: Path, place: Path) -> Path:
    """Write a manifest of the stand-ins whose files are below that URL, and return where it is."""
    text = (folder / "weights.toml").read_text(encoding="utf-8")
    manifest = place / "weights.toml"
    manifest.write_text(re.sub(r'"file://[^"]*/files/', f'"{url}', text), encoding="utf-8")
    return manifest


if __name__ == "__main__":
    sys.exit(main())
