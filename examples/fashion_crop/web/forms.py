"""The fields of the forms that come in, and what is said about a wrong one."""

from collections import Counter
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from fashion_crop.models.crops import BACKGROUNDS, Rendering
from fashion_crop.models.detection import OptionsError
from fashion_crop.models.pipeline import Options

from . import errors

_defaults = Options()
_rendering = Rendering()

Share = Annotated[float, Field(ge=0, le=1)]

_SHARE = "must be a number from 0 to 1"
WANTED = {  # the message for any wrong value of a field
    "image": "must be one photo, sent as a file",
    "prompts": "must be text: what to look for, separated by commas",
    "box_threshold": _SHARE,
    "text_threshold": _SHARE,
    "nms_threshold": _SHARE,
    "padding": _SHARE,
    "background": "must be transparent, white, original or a colour as #rrggbb",
    "aspect": "must be original, 1:1 or 4:5",
    "format": "must be png, webp or jpeg",
}
_MOST = 40  # characters of a wrong value that a message repeats


class FindForm(BaseModel):
    """The fields of a request for boxes or masks. An empty field counts as absent."""

    model_config = ConfigDict(extra="forbid")  # else a misspelt threshold is a default, without a word

    # By the format, generators of clients see that it is a file.
    image: UploadFile = Field(description="The photo: JPEG, PNG or WebP.", json_schema_extra={"format": "binary"})
    prompts: str = Field(default=",".join(_defaults.prompts), description="What to look for, separated by commas.")
    box_threshold: Share = Field(default=_defaults.box_threshold, description="The least score of a box.")
    text_threshold: Share = Field(default=_defaults.text_threshold, description="The least score of its label.")
    nms_threshold: Share = Field(
        default=_defaults.nms_threshold, description="How much boxes of a label may overlap: intersection over union."
    )

    def options(self, max_prompts: int, max_prompt: int) -> Options:
        """Return what is looked for.

        Raises:
            ServiceError: It cannot be looked for.
        """
        prompts = tuple(prompt.strip() for prompt in self.prompts.split(",") if prompt.strip())
        if not prompts:
            raise errors.of_fields([("prompts", f"{WANTED['prompts']}, got {_shortened(self.prompts)!r}")])
        if len(prompts) > max_prompts:
            raise errors.of_fields([("prompts", f"must be at most {max_prompts} prompts, got {len(prompts):,}")])
        if (longest := max(map(len, prompts))) > max_prompt:  # each box that is found has one for its label
            text = f"must have at most {max_prompt} characters each, got {longest:,}"
            raise errors.of_fields([("prompts", text)])
        try:
            return Options(prompts, **self.model_dump(include={"box_threshold", "text_threshold", "nms_threshold"}))
        except OptionsError as error:
            raise errors.of_fields(error.problems) from error


class CropForm(FindForm):
    """The fields of a request for crops. An empty field counts as absent."""

    padding: Share = Field(
        default=_rendering.padding, description="What a crop shows around its box, as a share of the box's longer side."
    )
    background: str = Field(
        default=_rendering.background,
        pattern=f"^({BACKGROUNDS})$",
        description="What is not garment: transparent, white, a colour as #rrggbb, or original for the photo itself. "
        "JPEG cannot be transparent.",
    )
    aspect: Literal["original", "1:1", "4:5"] = Field(
        default=_rendering.aspect,
        description="Width by height of a crop. The box grows around its centre and is never cut. Beyond the photo "
        "there is transparency or the colour of the background; with background original it is white.",
    )
    format: Literal["png", "webp", "jpeg"] = Field(
        default=_rendering.format,
        description="Of the pictures. Their pixels are the original pixels of the photo, not made smaller.",
    )

    def rendering(self) -> Rendering:
        """Return how garments are shown.

        Raises:
            ServiceError: They cannot be shown so.
        """
        try:
            return Rendering(self.padding, self.background, self.aspect, self.format)
        except OptionsError as error:
            raise errors.of_fields(error.problems) from error


async def refuse_repeated_fields(request: Request) -> None:
    """Refuse a field that is there twice: which of them is meant?"""
    counts = Counter(name for name, _ in (await request.form()).multi_items())
    problems = [
        (_shortened(name), f"must be given once, got it {count} times") for name, count in counts.items() if count > 1
    ]
    if problems:
        raise errors.of_fields(problems)


def install(app: FastAPI) -> None:
    """Describe wrong fields in words of our own: pydantic's name classes of Python and regular expressions."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        form = CropForm if request.scope["route"].path == "/v1/crops" else FindForm
        fields = list(form.model_fields)
        return errors.of_fields([_problem(each, fields) for each in error.errors()]).response()

    app.add_exception_handler(RequestValidationError, answer)


def _problem(problem: dict[str, Any], fields: list[str]) -> tuple[str, str]:
    name = ".".join(str(part) for part in problem["loc"][1:])
    if name not in fields:
        close = get_close_matches(name[:_MOST], fields, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return _shortened(name), f"is not a field here: {hint}The fields are {', '.join(fields)}"
    return name, f"{WANTED[name]}, got {_got(problem)}"


def _got(problem: dict[str, Any]) -> str:
    given = problem["input"]
    if problem["type"] == "missing":
        return "nothing"
    return repr(_shortened(given)) if isinstance(given, str) else "a file"


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST else f"{text[:_MOST]}…"
