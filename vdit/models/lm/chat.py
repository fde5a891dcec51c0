"""Chat templates: a conversation to the text that a model was trained on, by the template that came with it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdit.errors import TextError
from vdit.paths import MIB, parse_json
from vdit.reprs import short_repr

TEMPLATE_LIMIT = MIB  # of a template's text
_SECONDS, _MEMORY = 5, 1024 * MIB  # that rendering may take
_MOST = 16 * MIB  # characters of all texts of a call

Conversation = Sequence[Mapping[str, Any]]


@short_repr
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template in jinja2's language, as folders of transformers and GGUF files bring it.

    It is untrusted: it runs in jinja2's sandbox, in a process of its own with little time and memory. It knows no date,
    so that the same conversation gives the same text on every day.

    Attributes:
        source: the template.
        bos, eos: texts of the tokens that begin and end a text, which templates name.
        variables: more that the template may read ("enable_thinking" of Qwen3).

    Example:
        template = ChatTemplate(source="{% for m in messages %}{{ m['content'] }}{% endfor %}")
        template.render([{"role": "user", "content": "Say hello."}])     # -> "Say hello."
    """

    source: str = dataclasses.field(repr=False)
    bos: str = ""
    eos: str = ""
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.source) > TEMPLATE_LIMIT:
            raise TextError(f"a chat template of {len(self.source)} characters: must have at most {TEMPLATE_LIMIT}")

    def render(self, messages: Conversation) -> str:
        """One conversation, up to where the assistant is to answer."""
        return self.render_all([messages])[0]

    def render_all(self, conversations: Sequence[Conversation]) -> list[str]:
        """Conversations, each up to where the assistant is to answer; one process for all of them.

        Args:
            conversations: messages of {"role": ..., "content": ...} each, of plain JSON.

        Returns:
            A text for each.

        Raises:
            TextError: the template is broken, refuses the conversation, or takes too long.
        """
        job = {
            "template": self.source, "conversations": [list(map(dict, messages)) for messages in conversations],
            "variables": {
                "bos_token": self.bos, "eos_token": self.eos, "add_generation_prompt": True, **self.variables,
            },
            "seconds": _SECONDS, "memory": _MEMORY, "most": _MOST,
        }  # fmt: skip
        command = [sys.executable, "-I", str(Path(__file__).with_name("render.py"))]
        try:
            done = subprocess.run(
                command, input=json.dumps(job).encode(), capture_output=True, timeout=4 * _SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise TextError(f"the chat template took more than {4 * _SECONDS} seconds: do not trust it") from None
        if done.returncode:
            raise TextError(
                f"the chat template took more than {_SECONDS} seconds or {_MEMORY // MIB} MiB: do not trust it"
            )
        answer = parse_json(done.stdout, name="the chat template's text", error=TextError)
        if "error" in answer:
            raise TextError(f"the chat template cannot write this conversation ({answer['error']}): use another one")
        return answer["texts"]
