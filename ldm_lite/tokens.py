"""Text as numbers: bytes, and pairs of them that come often (byte-pair encoding; Sennrich et al. 2016).

Any text has tokens, since its bytes have; words that were seen often have one each. Upper case reads as lower case."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from .config import InputError

# a word with the blank before it, a run of other signs, or blanks: pairs never reach across
WORDS = re.compile(r" ?\w+| ?[^\w\s]+|\s+")


class BytePairs:
    """merges: pairs of tokens, each of which is the next token, 257 the first. 0 to 255 are bytes, 256 is the end."""

    end = 256

    def __init__(self, merges: Sequence[Sequence[int]] = ()):
        self.rank = {tuple(pair): i for i, pair in enumerate(merges)}
        self.size = 257 + len(merges)
        self.bytes = [bytes([i]) for i in range(256)] + [b""]
        for a, b in merges:
            self.bytes.append(self.bytes[a] + self.bytes[b])
        self.word = functools.lru_cache(maxsize=65536)(self._word)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without an end."""
        return [token for word in WORDS.findall(text.lower()) for token in self.word(word)]

    def row(self, text: str, length: int) -> list[int]:
        """So many tokens: the text's, cut or filled up with the end."""
        tokens = self.encode(text)[:length]
        return tokens + [self.end] * (length - len(tokens))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text, in lower case, that tokens stand for; a byte that is no text by itself becomes a mark."""
        return b"".join(self.bytes[token] for token in tokens).decode(errors="replace")

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text lies in its bytes: from, to."""
        place, found = 0, []
        for token in self.encode(text):
            found.append((place, place + len(self.bytes[token])))
            place = found[-1][1]
        return found

    def _word(self, word: str) -> tuple[int, ...]:
        tokens = list(word.encode())
        while len(tokens) > 1:
            first = min(pairwise(tokens), key=lambda pair: self.rank.get(pair, self.size))
            if first not in self.rank:
                break
            tokens = merged(tokens, first, 257 + self.rank[first])
        return tuple(tokens)


class Words:
    """A tokenizer of the transformers library in place of byte pairs, from a folder or, once, from the hub.

    The original's text-to-image models read bert-base-uncased's words. It is had when it is first needed."""

    def __init__(self, name: str):
        self.name = name

    @functools.cached_property
    def tokenizer(self) -> Any:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise InputError(f"tokenizer: {self.name} needs transformers: pip install ldm-lite[text]") from None
        try:
            return AutoTokenizer.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:90]
            raise InputError(
                f"tokenizer: {self.name} cannot be had ({reason}); give a folder of one (convert: --encoder)"
            ) from None

    @property
    def size(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with what the tokenizer sets at its ends."""
        return self.tokenizer(text, verbose=False)["input_ids"]  # a text that is too long is said to be so by us

    def row(self, text: str, length: int) -> list[int]:
        """So many tokens: the text's, cut or filled up, as the original calls the tokenizer."""
        return self.tokenizer(text, truncation=True, max_length=length, padding="max_length")["input_ids"]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text lies in its bytes: from, to."""
        offsets = self.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return [(len(text[:a].encode()), len(text[:b].encode())) for a, b in offsets]


def merged(tokens: Sequence[int], pair: tuple[int, int], token: int) -> list[int]:
    """The tokens with every such pair replaced by one token."""
    out: list[int] = []
    for t in tokens:
        if out and (out[-1], t) == pair:
            out[-1] = token
        else:
            out.append(t)
    return out


def learned(texts: Iterable[str], vocabulary: int) -> tuple[tuple[int, int], ...]:
    """The merges of the pairs that are most frequent in texts, until there are `vocabulary` tokens or no pair is left
    that comes twice. Of equally frequent ones the smaller numbers are first: the same texts give the same merges."""
    words = Counter(word for text in texts for word in WORDS.findall(text.lower()))
    split = {word: list(word.encode()) for word in words}
    merges: list[tuple[int, int]] = []
    while 257 + len(merges) < vocabulary:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, n in words.items():
            for pair in pairwise(split[word]):
                pairs[pair] += n
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        merges.append(best)
        for word, tokens in split.items():
            split[word] = merged(tokens, best, 256 + len(merges))
    return tuple(merges)
