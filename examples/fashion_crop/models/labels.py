"""Convert prompts to the caption that GroundingDINO reads, and token scores back to prompts.

GroundingDINO gives every box a score for every token of the caption. Joining all tokens above a threshold gives labels
such as "shirt dress", or "##van" for half a word. Here a label is always one of the prompts: the one with the best
token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

MAX_TOKENS = 256  # GroundingDINO's max_text_len: it cuts off what is longer, without a word
UNKNOWN = "[UNK]"  # what BERT's vocabulary has for everything that it has not


class PromptsError(ValueError):
    """The prompts are invalid: the list is empty, one has no words for the model, or there are too many."""


@dataclass(frozen=True)
class Caption:
    """The sentence, and where each prompt stands in it.

    Attributes:
        text: As in ``"shirt . t-shirt ."``.
        prompts: The prompts as they were asked for, without those that read the same as an earlier one.
        spans: The tokens of each prompt; token 0 begins the sentence.
    """

    text: str
    prompts: tuple[str, ...]
    spans: tuple[slice, ...]

    def best(self, scores: NDArray[np.floating]) -> tuple[NDArray[np.intp], NDArray[np.floating]]:
        """Return which prompt fits each box best.

        Args:
            scores: One row a box, one column a token, 0 to 1.

        Returns:
            For each box the index of its prompt, the first one of equals, and the best score of that prompt's tokens.
        """
        by_prompt = np.stack([scores[:, span].max(axis=1) for span in self.spans], axis=1)
        return by_prompt.argmax(axis=1), by_prompt.max(axis=1)


def caption_of(prompts: Sequence[str], tokenize: Callable[[str], Sequence[str]]) -> Caption:
    """Write the prompts as one sentence.

    Args:
        prompts: What is looked for; upper and lower case are the same.
        tokenize: From a text to the tokens of the model's vocabulary, without those that begin and end a sentence.

    Raises:
        PromptsError: There is no prompt, one has no word that the model knows, or together they have over 256 tokens.
    """
    asked: dict[tuple[str, ...], str] = {}  # by tokens, since to the model "Café" and "cafe" are one
    texts = []
    for prompt in prompts:
        # A dot or a question mark ends a prompt in the sentence. Lower case keeps "[SEP]" from ending all of it.
        text = " ".join(prompt.lower().replace(".", " ").replace("?", " ").split())
        tokens = tuple(tokenize(text))
        if all(token == UNKNOWN for token in tokens):
            raise PromptsError(f"the prompt {_shortened(prompt)} has no word that the model knows: say it in English")
        if tokens not in asked:
            asked[tokens] = prompt
            texts.append(text)
    if not asked:
        raise PromptsError("there is no prompt: give at least one, as in 'shirt'")
    spans, position = [], 1
    for tokens in asked:
        spans.append(slice(position, position + len(tokens)))
        position += len(tokens) + 1
    if position + 1 > MAX_TOKENS:
        raise PromptsError(
            f"the prompts are {position + 1} tokens long, and the model reads {MAX_TOKENS} at once: "
            "ask for fewer, or in several requests"
        )
    return Caption(" . ".join(texts) + " .", tuple(asked.values()), tuple(spans))


def _shortened(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else prompt[:40] + "…")
