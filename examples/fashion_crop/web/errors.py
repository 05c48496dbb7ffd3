"""One format for all errors: a code for programs, and a message that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from . import request_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import FastAPI, Request

    from fashion_crop.models.photo import PhotoError


class FieldProblem(BaseModel):
    """What is wrong with one field of the form."""

    field: str = Field(description="Its name, as it was sent.")
    message: str = Field(description="For people: what was wanted, and what was sent.")


class Problem(BaseModel):
    """What went wrong."""

    code: str = Field(description="For programs; stays as it is.", examples=["image-too-large"])
    message: str = Field(description="For people: what, what was wanted, what to do. May be worded otherwise one day.")
    request_id: str = Field(description="As in the header X-Request-ID. The server's log names it with a failure.")
    fields: list[FieldProblem] = Field(default=[], description="The fields that are to blame, if any is.")


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    error: Problem


class ServiceError(HTTPException):
    """An error answer for a request.

    It is an `HTTPException` because FastAPI passes only these on while it reads a body.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.fields = tuple(fields)

    def response(self) -> JSONResponse:
        """Return the answer."""
        error: dict[str, Any] = {"code": self.code, "message": self.detail, "request_id": request_ids.current()}
        if self.fields:
            error["fields"] = [{"field": field, "message": message} for field, message in self.fields]
        return JSONResponse({"error": error}, self.status_code, self.headers)


_PHOTO = {
    "undecodable": (400, "image-undecodable"),
    "unsupported": (415, "image-unsupported"),
    "too-large": (413, "image-too-large"),
}


def of_photo(error: PhotoError) -> ServiceError:
    """Return the error for a photo that cannot be used."""
    status, code = _PHOTO[error.reason]
    return ServiceError(status, code, str(error), fields=[("image", str(error))])


def too_many_bytes(most: int) -> ServiceError:
    """Return the error for a photo with too many bytes."""
    text = f"the photo has more than {most:,} bytes, and at most so many are taken: send a smaller one"
    return ServiceError(413, "image-too-large", text, fields=[("image", text)])


def too_slow(slowest: int) -> ServiceError:
    """Return the error for an upload that is too slow."""
    text = f"the form came at less than {slowest:,} bytes a second: try again, or send a smaller photo"
    return ServiceError(408, "too-slow", text, headers={"Connection": "close"})


def of_fields(problems: Iterable[tuple[str, str]]) -> ServiceError:
    """Return the error for invalid fields of a form."""
    problems = list(problems)
    text = "; ".join(f"{field}: {message}" for field, message in problems)
    return ServiceError(422, "fields-invalid", f"the form cannot be used: {text}", fields=problems)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe error answers for OpenAPI."""
    headers = {request_ids.HEADER: REQUEST_ID}
    return {
        status: {"model": ErrorAnswer, "description": _DESCRIPTIONS[status], "headers": headers} for status in statuses
    }


REQUEST_ID = {"description": "As in the request, or made by the server.", "schema": {"type": "string"}}


_RETRY_AFTER = "Not ready, or too many requests wait. With Retry-After, in seconds, if a retry can succeed."
_DESCRIPTIONS = {
    400: "The request or the photo is damaged.",
    401: "The API key is missing or wrong.",
    406: "None of the types in Accept is made here.",
    408: "The request came too slowly.",
    413: "The photo has too many bytes or pixels.",
    415: "The request is no form, or the file is no photo.",
    422: "Fields of the form are missing or wrong.",
    500: "A mistake of the server.",
    503: _RETRY_AFTER,
}


def install(app: FastAPI) -> None:
    """Use this format for FastAPI's errors. `forms.install` does it for wrong fields, and `Observing` for crashes."""
    app.add_exception_handler(HTTPException, _http)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, ServiceError):
        return error.response()
    path, status = request.url.path, error.status_code
    allowed = (error.headers or {}).get("Allow", "")
    code, message = {
        404: ("not-found", f"there is nothing at {path[:200]}: /openapi.json lists all paths"),
        405: ("method-not-allowed", f"{request.method} is not for {path[:200]}: use {allowed}"),
    }.get(status, ("request-malformed", f"the form cannot be read: {error.detail}"))
    return ServiceError(status, code, message, headers=error.headers).response()


def internal() -> ServiceError:
    """Return the error for a bug. Details are only in the log."""
    return ServiceError(500, "internal", "something went wrong in the server, and it is in its log: try again once")
