"""Text to tokens and messages to a prompt, as a server does it: with the model's own tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["LocalVocabulary", "Place", "Token", "Vocabulary", "small_tokenizer"]


@dataclass(frozen=True)
class Token:
    """One generated token; `text` is what it adds, empty where a character is not yet whole."""

    id: int
    text: str
    is_special: bool = False


@dataclass(frozen=True)
class Place:
    """Where a token of a prompt stands in its text, in characters."""

    id: int
    start: int
    stop: int


class Vocabulary(ABC):
    """What a server does with its tokenizer. `end` is the end-of-text token."""

    end: Token
    special: frozenset[int] = frozenset()
    """The ids that no reply's text shows."""

    @abstractmethod
    def places(self, text: str, *, add_special_tokens: bool) -> list[Place]:
        """The tokens of a prompt, special tokens read as such."""

    @abstractmethod
    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        """The messages in the chat template, ready for the assistant's turn.

        Raises `ValueError` where there is no template or it refuses the messages.
        """

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        """How many tokens a prompt has."""
        return len(self.places(text, add_special_tokens=add_special_tokens))

    def tokens(self, text: str) -> list[Token]:
        """The tokens that a model would have to generate to say `text`; joined they are `text`."""
        places = self.places(text, add_special_tokens=False)
        tokens, said = [], 0
        for index, place in enumerate(places):
            # A character of several tokens belongs to the last of them, as in a stream.
            is_last = index == len(places) - 1
            end = len(text) if is_last else max(said, places[index + 1].start)
            tokens.append(Token(place.id, text[said:end], place.id in self.special))
            said = end
        return tokens


class LocalVocabulary(Vocabulary):
    """A tokenizer in this process; raises `ValueError` where it has no end-of-text token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no end-of-text token, so no reply could end. Set its eos_token."
            )
        self._tokenizer = tokenizer
        self.special = frozenset(tokenizer.all_special_ids)
        self.end = Token(tokenizer.eos_token_id, str(tokenizer.eos_token), is_special=True)

    def places(self, text: str, *, add_special_tokens: bool) -> list[Place]:
        encoding = self._encoded(text, add_special_tokens=add_special_tokens)
        return [
            Place(token_id, start, stop)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]

    def count(self, text: str, *, add_special_tokens: bool) -> int:
        return len(self._encoded(text, add_special_tokens=add_special_tokens))

    def _encoded(self, text: str, *, add_special_tokens: bool) -> Any:
        backend = self._tokenizer.backend_tokenizer
        return backend.encode(text, add_special_tokens=add_special_tokens)

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        from jinja2 import TemplateError

        try:
            prompt = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] if tools else None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TemplateError as error:
            raise ValueError(str(error)) from error
        return str(prompt)


# The roles first, so that each is one token: then a user's message has a frame of 8 tokens, as in
# the Qwen models.
_WORDS = """
    user assistant system
    the of and to in a is was that for on as with it at by from are were this be have not or had an
    which but his her they their one there all been who when will would more no if out so said what
    up its about than into them only other time new some could these two may then do first any my
    now such like our over even most me state after also made before must through years where much
    memory plan section question answer document chunk line found previous core instructions
""".split()

_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def small_tokenizer(*, opens_thinking: bool = False) -> PreTrainedTokenizerFast:
    """A real fast tokenizer of the Qwen models' shape, small enough to be built in memory.

    Byte-level BPE after NFC, no token at the beginning, `<|im_end|>` as the end of a turn,
    `<think>` and `</think>` as tokens of their own, a ChatML template. With `opens_thinking` the
    template itself writes `<think>`, as some thinking models' templates do, so that a reply holds
    only `</think>`.
    """
    from tokenizers import (  # type: ignore[import-untyped]  # it has no stubs
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: rank for rank, letter in enumerate(letters)}
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        pairs = [(word[:size], word[size]) for size in range(1, len(word))]
        for pair in [*pairs, ("Ġ", word)]:
            merges.setdefault(pair)
            vocabulary.setdefault("".join(pair), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in ("<think>", "</think>")])
    opening = "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}" if opens_thinking else ""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers' own
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_TEMPLATE + opening,
    )
