"""The messages of a conversation: the types that validate them, and their plain form for chat templates.

A field whose `Meta` has `extra={"openai": type}` takes less than OpenAI's own type: what fits only OpenAI's is answered
`unsupported_parameter` (see `explain.py`). It must know nothing of templates or models.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

TemplateMessage = dict[str, Any]
"""A message as chat templates take it: `role`, `content` (str), and where given `name`, `tool_calls`, `tool_call_id`."""


class TextPart(Struct, forbid_unknown_fields=True, kw_only=True):
    """A part of a message's content: text."""

    type: Annotated[Literal["text"], Meta(extra={"openai": Literal["image_url", "input_audio", "file"]})]
    text: str
    prompt_cache_breakpoint: Annotated[None, Meta(description="Not supported: null.", extra={"openai": dict[str, Any]})] = None


class AssistantTextPart(Struct, tag="text", tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """A part of an assistant's content: text."""

    text: str
    prompt_cache_breakpoint: Annotated[None, Meta(description="Not supported: null.", extra={"openai": dict[str, Any]})] = None


class RefusalPart(Struct, tag="refusal", tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """A part of an assistant's content: the words in which it refused; read as text."""

    refusal: str


class FunctionCall(Struct, forbid_unknown_fields=True, kw_only=True):
    """The function that the assistant called."""

    name: Annotated[str, Meta(min_length=1)]
    arguments: Annotated[str, Meta(description="The arguments as a JSON text, as the model wrote them.")]


class ToolCall(Struct, forbid_unknown_fields=True, kw_only=True):
    """A call of a function that the assistant made in an earlier turn."""

    type: Annotated[Literal["function"], Meta(extra={"openai": Literal["custom"]})]
    id: Annotated[str, Meta(min_length=1)]
    function: FunctionCall

    def plain(self) -> dict[str, Any]:
        """The call for a chat template: arguments that hold a JSON object are given as that object, others as the text they are."""
        arguments = _json_object(self.function.arguments)
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


TextContent = str | Annotated[list[TextPart], Meta(min_length=1)]
AssistantContent = str | Annotated[list[AssistantTextPart | RefusalPart], Meta(min_length=1)]


class _Message(Struct, forbid_unknown_fields=True, kw_only=True):
    """What every message has; `role` is the tag."""

    unsupported_tags: ClassVar[tuple[str, ...]] = ("function",)
    template_role: ClassVar[str]

    name: Annotated[str | None, Meta(description="Name of the participant; given to chat templates that use it.")] = None

    def plain(self) -> TemplateMessage:
        """The message for a chat template."""
        message: TemplateMessage = {"role": self.template_role, "content": self.text()}
        if self.name is not None:
            message["name"] = self.name
        return message

    def text(self) -> str:
        """The content as one text."""
        raise NotImplementedError


class _TextMessage(_Message, kw_only=True):
    content: Annotated[TextContent, Meta(description="A text, or a list of text parts, which are joined.")]

    def text(self) -> str:
        return self.content if isinstance(self.content, str) else _joined(self.content)


class SystemMessage(_TextMessage, tag="system", tag_field="role"):
    """Instructions for the whole conversation."""

    template_role: ClassVar[str] = "system"


class DeveloperMessage(_TextMessage, tag="developer", tag_field="role"):
    """Instructions for the whole conversation, by their newer name: the same as a system message."""

    template_role: ClassVar[str] = "system"


class UserMessage(_TextMessage, tag="user", tag_field="role"):
    """A turn of the user."""

    template_role: ClassVar[str] = "user"


class AssistantMessage(_Message, tag="assistant", tag_field="role", kw_only=True):
    """A turn of the assistant; a message of an answer can be sent back as it came."""

    template_role: ClassVar[str] = "assistant"

    content: Annotated[AssistantContent | None, Meta(description="A text, or a list of text parts; null only beside tool_calls.")] = None
    refusal: Annotated[str | None, Meta(description="The words in which the assistant refused; read as text.")] = None
    tool_calls: Annotated[list[ToolCall] | None, Meta(description="The calls of functions that the assistant made.")] = None
    annotations: Annotated[
        Annotated[list[Any], Meta(max_length=0)] | None, Meta(description="Only empty.", extra={"openai": list[dict[str, Any]]})
    ] = None
    audio: Annotated[None, Meta(description="Not supported: null.", extra={"openai": dict[str, Any]})] = None
    function_call: Annotated[None, Meta(description="Not supported: null.", extra={"openai": dict[str, Any]})] = None

    def is_empty(self) -> bool:
        """Whether nothing was said or called, which no conversation can contain."""
        return self.content is None and self.refusal is None and not self.tool_calls

    def text(self) -> str:
        """The content as one text, the refusal after it."""
        content = self.content if isinstance(self.content, str) else _joined(self.content or [])
        return content + (self.refusal or "")

    def plain(self) -> TemplateMessage:
        """The message for a chat template, with its tool calls."""
        message = super().plain()
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        return message


class ToolMessage(_TextMessage, tag="tool", tag_field="role", kw_only=True):
    """What a called function returned."""

    template_role: ClassVar[str] = "tool"

    tool_call_id: Annotated[str, Meta(min_length=1, description="The `id` of the call that this answers.")]

    def plain(self) -> TemplateMessage:
        """The message for a chat template, with the id of its call."""
        return super().plain() | {"tool_call_id": self.tool_call_id}


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage
Role = Literal["system", "developer", "user", "assistant", "tool"]


def _joined(parts: list[TextPart] | list[AssistantTextPart | RefusalPart]) -> str:
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in parts)


def _json_object(text: str) -> dict[str, Any] | str:
    # Models do not always write valid JSON, and what they wrote is part of the conversation: it is passed on, not judged.
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
