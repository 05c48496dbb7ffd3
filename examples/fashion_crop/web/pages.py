"""The page: its files, and what a browser lets it do.

The files lie in ``page/`` as a browser gets them: nothing builds them. `page.html` is at ``/``, and the others below
``/page/``.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

FOLDER = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".jpg": "image/jpeg",
}
# It may load its own files and talk to this server, and do nothing else. No string becomes a script or HTML.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
_HEADERS = {
    "Cache-Control": "no-cache",  # a browser asks each time, and gets 304 unless the file has changed
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@router.get("/")
def page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "page.html")


@router.get("/page/{name}")
def file(request: Request, name: str) -> Response:
    """Return a file of the page."""
    # A comparison with the names that are there, so that no other path can be asked for.
    if name not in {path.name for path in FOLDER.iterdir() if path.suffix in TYPES}:
        raise HTTPException(404)
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    path = FOLDER / name
    data = path.read_bytes()
    headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"'}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=TYPES[path.suffix])
