"""Turns texts into CLIP's tokens, exactly as the official tokenizer does."""

from __future__ import annotations

import functools
import gzip
import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from sam_jax.errors import MissingPackage, UserError, WrongType
from sam_jax.files import read_asset

MERGES = "clip_merges.txt.gz"  # in assets
# What is merged: contractions, words of letters, single digits, runs of anything else.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenize(texts: Sequence[str], length: int = 77) -> Int[np.ndarray, "n length"]:
    """Returns the tokens of texts, between the two that begin and end each, padded with 0.

    Texts in any script are taken, byte by byte where CLIP knows no better; what it makes of scripts other than Latin is
    another matter, for it was trained on English. The marks that begin and end a text are ordinary letters in it.

    Args:
        texts: such as "a wheel"; case and spaces do not matter.
        length: most tokens of a text, with the two.

    Raises:
        WrongType: these are not texts.
        UserError: a text is empty, or has too many tokens.
        MissingPackage: the tokenizer's packages are not installed.
    """
    if isinstance(texts, str):
        raise WrongType(f"expected a list of texts, got the text {texts!r}; put it in brackets")
    for text in texts:
        if not isinstance(text, str):
            raise WrongType(f"expected texts, got {text!r} of type {type(text).__name__}")
    encoder, clean = _load()
    begin = encoder.get_vocab_size()
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        cleaned = clean(text)
        if not cleaned:
            raise UserError(f"expected a text that says what to look for, got {text!r}")
        tokens = encoder.encode(cleaned).ids
        if len(tokens) + 2 > length:
            raise UserError(
                f"expected a text of at most {length - 2} tokens, CLIP's limit, got {len(tokens)}: "
                f"{text[:60]!r}...; shorten it"
            )
        row[: len(tokens) + 2] = [begin, *tokens, begin + 1]
    return rows


@functools.cache
def _load() -> tuple[Any, Any]:
    """Returns the byte-pair encoder without the two special tokens, and the function that cleans texts."""
    try:
        import ftfy
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    except ImportError as error:
        raise MissingPackage(f"text prompts need a tokenizer: pip install 'sam_jax[text]' ({error})") from error
    packed = read_asset(MERGES)
    merges = [(a, b) for a, b in (line.split() for line in gzip.decompress(packed).decode("utf-8").splitlines())]
    # Bytes first, in the order of the official vocabulary: those that print, then the rest, which are written as
    # letters from U+0100 on.
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in printing] + [chr(256 + i) for i in range(256 - len(printing))]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {name: number for number, name in enumerate(names)}
    encoder = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )

    def clean(text: str) -> str:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        return re.sub(r"\s+", " ", text).strip().lower()

    return encoder, clean
