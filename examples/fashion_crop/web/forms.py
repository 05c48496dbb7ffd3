"""The fields of the forms that come in."""

from collections import Counter
from typing import Annotated

from fastapi import Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from fashion_crop.models.crops import BACKGROUNDS, Rendering
from fashion_crop.models.detection import OptionsError
from fashion_crop.models.pipeline import Options

from . import errors

_defaults = Options()
_rendering = Rendering()

Share = Annotated[float, Field(ge=0, le=1)]


class DetectForm(BaseModel):
    """The fields of a request for boxes. An empty field counts as absent."""

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
        """Return what is asked for.

        Raises:
            ServiceError: It cannot be asked for.
        """
        prompts = tuple(prompt.strip() for prompt in self.prompts.split(",") if prompt.strip())
        if len(prompts) > max_prompts:
            raise errors.of_fields([("prompts", f"must be {max_prompts} at most, got {len(prompts)}")])
        if (longest := max(map(len, prompts), default=0)) > max_prompt:  # each box that is found has one for its label
            text = f"must have {max_prompt} characters at most each, got {longest:,}"
            raise errors.of_fields([("prompts", text)])
        try:
            return Options(prompts, **self.model_dump(include={"box_threshold", "text_threshold", "nms_threshold"}))
        except OptionsError as error:
            raise errors.of_fields(error.problems) from error


class CropForm(DetectForm):
    """The fields of a request for crops."""

    padding: Share = Field(
        default=_rendering.padding, description="What a crop shows around its box, as a share of the box's longer side."
    )
    background: str = Field(
        default=_rendering.background,
        pattern=f"^({BACKGROUNDS})$",
        description="What is not garment: transparent, white, a colour as #rrggbb, or the photo itself.",
    )

    def rendering(self) -> Rendering:
        """Return how garments are shown.

        Raises:
            ServiceError: They cannot be shown so.
        """
        try:
            return Rendering(self.padding, self.background)
        except OptionsError as error:
            raise errors.of_fields(error.problems) from error


async def refuse_repeated_fields(request: Request) -> None:
    """Refuse a field that is there twice: which of them is meant?"""
    counts = Counter(name for name, _ in (await request.form()).multi_items())
    if problems := [(name, f"must be given once, got {count}") for name, count in counts.items() if count > 1]:
        raise errors.of_fields(problems)
