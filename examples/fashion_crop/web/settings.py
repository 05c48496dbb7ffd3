"""The limits of the service and its API key."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """What the service allows.

    Attributes:
        max_bytes: Of a photo as it is sent.
        max_pixels: Of a photo; width by height.
        max_prompts: In a request.
        max_prompt: Characters of one.
        max_queue: Photos that wait; one more is refused.
        workers: Photos that are worked on at once. Each takes all cores, so more than one gains little on a CPU.
        api_key: What a POST must show, if it must; spaces and newlines around it do not count.
        grace: Seconds after which an upload, or the reading of an answer, must be as far as ``slowest`` says.
        slowest: Bytes a second.
        max_answer: Bytes of all pictures of an answer, in the format that was asked for.

    Raises:
        ValueError: The key is empty, as that of a secret that was never filled in.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_prompts: int = 50
    max_prompt: int = 200
    max_queue: int = 16
    workers: int = 1
    api_key: str | None = field(default=None, repr=False)
    grace: float = 20.0
    slowest: int = 50_000
    max_answer: int = 64_000_000

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api_key is empty: give a key, or None to let everybody in")
