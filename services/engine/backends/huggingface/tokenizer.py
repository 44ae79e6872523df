"""Text to token ids and back, by the model's own tokenizer and chat template; users cannot forge special tokens.

The text of a special token in what users wrote is encoded as plain text, everything else exactly as transformers would: such texts are
replaced by random words before the template runs, the rendered text is cut at these words, and each is encoded without special tokens.
So templates may look at contents, cut and trim them.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from tokenizers import Tokenizer as FastTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class ModelTokenizer:
    """A fast tokenizer of transformers.

    The two Rust tokenizers below it are never changed after construction, so that threads may share them; transformers' own object sets
    their options at each call and may not be shared.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: frozenset[int]) -> None:
        """`tokenizer`: a PreTrainedTokenizerFast."""
        self.eos_token_ids = eos_token_ids
        self._tokenizer = tokenizer
        self._with_special = _copy(tokenizer.backend_tokenizer, special_is_plain=False)
        self._plain = _copy(tokenizer.backend_tokenizer, special_is_plain=True)
        special = {added.content for added in tokenizer.added_tokens_decoder.values() if added.special and added.content}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        start = tokenizer("")["input_ids"][:1]
        self._start: list[int] = start if start == [tokenizer.bos_token_id] else []

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text behind the model's start token, if it has one."""
        return self._start + self._ids(self._plain, text)

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn. Raises `ValueError` if the template refuses it."""
        if not self._tokenizer.chat_template:
            raise ValueError("this model has no chat template; use /v1/completions")
        hidden = _Hidden(self._special)
        rendered = self._render([hidden.hide(_normal(message)) for message in messages])
        if not hidden.texts:
            return self._ids(self._with_special, rendered)
        token_ids: list[int] = []
        for piece, text in hidden.split(rendered):
            token_ids += self._ids(self._with_special, piece) + self._ids(self._plain, text)
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return self._plain.decode(list(token_ids), skip_special_tokens=True)

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError, KeyError, AttributeError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ValueError(f"the model's chat template refuses them: {reason}") from error

    @staticmethod
    def _ids(tokenizer: FastTokenizer, text: str) -> list[int]:
        if not text:
            return []
        try:
            token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise ValueError("text with a lone surrogate is not Unicode") from error
        return token_ids


class _Hidden:
    """Texts of special tokens that stand in messages, under words that nobody can guess while the template runs."""

    def __init__(self, special: re.Pattern[str]) -> None:
        self.texts: list[str] = []
        self._special = special
        self._key = f"x{secrets.token_hex(12)}n"

    def hide(self, value: Any) -> Any:
        """The value, with words in place of special tokens in all its strings and keys."""
        if isinstance(value, dict):
            return {self.hide(key): self.hide(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.hide(one) for one in value]
        return self._special.sub(self._word, value) if isinstance(value, str) else value

    def split(self, rendered: str) -> Iterator[tuple[str, str]]:
        """Pairs of rendered text and the hidden text that follows it."""
        parts = re.split(f"{self._key}(\\d+)x", rendered)
        yield from zip(parts[::2], [*(self.texts[int(index)] for index in parts[1::2]), ""], strict=True)

    def _word(self, match: re.Match[str]) -> str:
        self.texts.append(match.group())
        return f"{self._key}{len(self.texts) - 1}x"


def _copy(backend: FastTokenizer, *, special_is_plain: bool) -> FastTokenizer:
    copy = FastTokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = special_is_plain
    return copy


def _normal(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates expect it: a content that is text (parts are joined), tool arguments as an object, developer as system."""
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
    normal = {**message, "content": content or ""}
    if message.get("role") == "developer":
        normal["role"] = "system"
    if message.get("tool_calls"):
        normal["tool_calls"] = [_normal_call(call) for call in message["tool_calls"]]
    return normal


def _normal_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call
