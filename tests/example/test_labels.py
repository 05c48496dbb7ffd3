"""Labels: a sentence out of prompts, and prompts out of scores."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fashion_crop.models.labels import MAX_TOKENS, UNKNOWN, Caption, PromptsError, caption_of
from fashion_crop.models.pipeline import GARMENTS


def tokenize(text: str) -> list[str]:
    """As BERT's does with ASCII: words and single marks, long words in pieces, other letters unknown."""
    tokens = []
    for word in re.findall(r"\w+|[^\w\s]", text):
        if not word.isascii():
            tokens.append(UNKNOWN)
        else:
            tokens += [word[:6], *(f"##{word[at : at + 6]}" for at in range(6, len(word), 6))]
    return tokens


def in_sentence(caption: Caption) -> list[str]:
    return ["[CLS]", *tokenize(caption.text), "[SEP]"]


def test_the_default_garments() -> None:
    caption = caption_of(GARMENTS, tokenize)
    assert caption.text.startswith("shirt . t-shirt . jacket . ")
    assert caption.text.endswith(" . belt .")
    assert caption.prompts == GARMENTS
    assert caption.spans[:3] == (slice(1, 2), slice(3, 6), slice(7, 8))  # a dot between them


@given(st.lists(st.text(st.characters(codec="ascii") | st.sampled_from("éß中👗")), min_size=1, max_size=8))
def test_every_span_holds_the_tokens_of_its_prompt(prompts: list[str]) -> None:
    try:
        caption = caption_of(prompts, tokenize)
    except PromptsError:
        return
    sentence = in_sentence(caption)
    assert set(caption.prompts) <= set(prompts)
    for prompt, span in zip(caption.prompts, caption.spans, strict=True):
        assert sentence[span] == tokenize(re.sub(r"[.?]", " ", prompt.lower()))
        assert sentence[span.stop] == "."
    covered = [number for span in caption.spans for number in range(span.start, span.stop)]
    between = [token for number, token in enumerate(sentence) if number not in covered]
    assert between == ["[CLS]", *["."] * len(caption.prompts), "[SEP]"]


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_a_label_is_the_prompt_whose_best_token_is_best(seed: int, boxes: int) -> None:
    caption = caption_of(["shirt", "evening dress", "t-shirt", "caravan"], tokenize)
    scores = np.random.default_rng(seed).random((boxes, MAX_TOKENS), dtype=np.float32)
    indices, best = caption.best(scores)
    for row, index, score in zip(scores, indices, best, strict=True):
        mine = [max(row[span]) for span in caption.spans]
        assert (mine[index], mine[index]) == (max(mine), score)


def test_a_box_that_is_a_bit_of_both_is_the_better_one() -> None:
    caption = caption_of(["shirt", "dress"], tokenize)  # joined words would be "shirt dress"
    assert caption.best(np.array([[0, 0.6, 0.9, 0.7, 0.9, 0]]))[0].tolist() == [1]


def test_half_a_word_stands_for_its_prompt() -> None:
    caption = caption_of(["hat", "minivan coat"], tokenize)
    assert in_sentence(caption)[caption.spans[1]] == ["miniva", "##n", "coat"]
    assert caption.best(np.array([[0, 0.2, 0, 0.1, 0.8, 0.3, 0, 0]])) == (np.array([1]), np.array([0.8]))


def test_prompts_that_read_the_same_are_one() -> None:
    assert caption_of(["Shirt", "shirt", " SHIRT. ", "hat", "shirt?"], tokenize).prompts == ("Shirt", "hat")


def test_marks_stay_and_do_not_end_a_prompt() -> None:
    caption = caption_of(["v-neck.", "what? ever.. shirt", "a,b"], tokenize)
    assert caption.text == "v-neck . what ever shirt . a,b ."
    assert caption.prompts == ("v-neck.", "what? ever.. shirt", "a,b")


@pytest.mark.parametrize("prompt", ["", "  ", "...", "?", "👗", "中文 👗"])
def test_a_prompt_without_a_word_is_refused(prompt: str) -> None:
    with pytest.raises(PromptsError, match=re.escape(repr(prompt))):
        caption_of(["shirt", prompt], tokenize)


def test_one_known_word_is_enough() -> None:
    assert caption_of(["中文 shirt"], tokenize).prompts == ("中文 shirt",)


def test_no_prompt_is_refused() -> None:
    with pytest.raises(PromptsError, match="there is no prompt"):
        caption_of([], tokenize)


def test_as_many_tokens_as_the_model_reads() -> None:
    words = [f"w{number}" for number in range(127)]  # each with its dot, and the two at the ends
    caption = caption_of(words, tokenize)
    assert len(in_sentence(caption)) == MAX_TOKENS == caption.spans[-1].stop + 2
    with pytest.raises(PromptsError, match="are 257 tokens long, and the model reads 256"):
        caption_of([*words[:-1], "one more"], tokenize)


def test_a_long_prompt_is_not_repeated_in_the_error() -> None:
    with pytest.raises(PromptsError) as caught:
        caption_of(["👗" * 100_000], tokenize)
    assert len(str(caught.value)) < 200
