"""Shows docstrings as they are written: plain text, with sections of Google's style (Args, Returns, Raises, Example).

reStructuredText gives meaning to marks that stand in plain text for themselves (`*`, `|`, a trailing `_`) and to
indentation. Here those marks are escaped, `names` in single backticks become code, indented blocks after an empty line
become listings, and a paragraph that begins with "name: " or "name, name: " becomes a list of names.
"""

from __future__ import annotations

import re

SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Example|Examples|Note|Attributes|References):$")
TAKES_NAMES = ("Args", "Raises", "Attributes")
NAME = re.compile(r"^([A-Za-z_][\w.]*(?:, [A-Za-z_][\w.]*){0,7}): (?=\S)")
LISTS = re.compile(r"^(?:[-*] |\d+\. |\|)")


def plain(lines: list[str]) -> list[str]:
    """The lines of a docstring as reStructuredText that shows them as they are."""
    out: list[str] = []
    section, i = "", 0
    while i < len(lines):
        line = lines[i]
        if found := SECTION.match(line):
            section = found[1]
            out += ["", line]
            i += 1
        elif not line.strip():
            out.append("")
            i += 1
        elif section and line.startswith(" "):
            i = _section(lines, i, section, out)
        else:
            section = ""
            i = _listing(lines, i, out) if line.startswith(" ") else _paragraph(lines, i, out)
    return out


def _section(lines: list[str], i: int, section: str, out: list[str]) -> int:
    """An entry of Args and the like with the lines that go on with it, or a listing of Example."""
    if section.startswith("Example"):
        return _listing(lines, i, out, indent=4)
    start, text = _indent(lines[i]), [lines[i].strip()]
    i += 1
    while i < len(lines) and lines[i].strip() and _indent(lines[i]) > start:
        text.append(lines[i].strip())
        i += 1
    whole = " ".join(text)
    if section in TAKES_NAMES and (found := re.match(r"^([\w., *]+?(?: \([^)]*\))?): ", whole)):
        out.append(f"    {found[1].replace('*', '')}: {escaped(whole[found.end():])}")
    else:
        out.append(f"    {escaped(whole)}")
    return i


def _listing(lines: list[str], i: int, out: list[str], indent: int = 0) -> int:
    """Lines indented after an empty line, as they are."""
    code = []
    while i < len(lines) and (not lines[i].strip() or lines[i].startswith(" ")):
        code.append(lines[i])
        i += 1
    least = min(_indent(line) for line in code if line.strip())
    out += ["", " " * indent + "::", ""]
    out += [" " * (indent + 4) + line[least:] if line.strip() else "" for line in code]
    out.append("")
    return i


def _paragraph(lines: list[str], i: int, out: list[str]) -> int:
    """A paragraph up to an empty line; lines that begin with names become entries of a list."""
    block = []
    while i < len(lines) and lines[i].strip() and not SECTION.match(lines[i]):
        block.append(lines[i])
        i += 1
    entries: list[list[str]] = []
    for line in block:
        begins = _indent(line) == 0 and (NAME.match(line) or LISTS.match(line))
        if begins or not entries:
            entries.append([line.strip()])
        else:
            entries[-1].append(line.strip())
    out.append("")
    for number, entry in enumerate(entries):
        text, summary_line = " ".join(entry), i == len(block) and number == 0
        if not summary_line and (found := NAME.match(text)):
            names = ", ".join(f"``{name}``" for name in found[1].split(", "))
            out += ["", f"- {names}: {escaped(text[found.end():])}"]
        elif found := LISTS.match(text):
            out += ["", f"- {escaped(text[found.end():])}"]
        else:
            out += ["", escaped(text)]
    out.append("")
    return i


def escaped(text: str) -> str:
    """Text in which only backticks mean anything: what they enclose is code."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", text)
    for k, part in enumerate(parts):
        if k % 2 == 0:
            parts[k] = re.sub(r"([*|`\\])|(?<=\w)(_)(?!\w)", lambda m: "\\" + m[0], part)
            continue
        before = "\\ " if re.search(r"[\w\[(-]$", parts[k - 1]) else ""  # code must stand apart from words
        after = "\\ " if re.match(r"\w", parts[k + 1]) else ""
        parts[k] = f"{before}``{part.strip('`').strip()}``{after}"
    return "".join(parts)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def summary(module) -> list[str]:
    """A table of the names that a module exports, each with the first sentence of its docstring."""
    documented = lambda name: getattr(getattr(module, name), "__module__", "").startswith("vdit")  # noqa: E731
    names = [name for name in module.__all__ if documented(name)]
    return ["", ".. autosummary::", "    :nosignatures:", "", *(f"    {name}" for name in names), ""]


def setup(app) -> dict:
    """Sphinx calls this: docstrings are made plain before napoleon reads their sections."""

    def process(app, what, name, obj, options, lines) -> None:
        lines[:] = plain(lines)
        if what == "module" and hasattr(obj, "__all__"):
            lines += summary(obj)

    def sign(app, what, name, obj, options, signature, returns):
        if what == "class" and any(base.__module__ == "flax.linen.module" for base in obj.__mro__):
            return "", returns  # Flax adds fields of its own; the fields are in the docstring
        if signature is None:
            return None
        short = re.sub(r"~?(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", signature).replace("<factory>", "...")
        return short.replace("Array | ndarray", "Array"), returns

    app.connect("autodoc-process-docstring", process, priority=100)
    app.connect("autodoc-process-signature", sign)
    return {"parallel_read_safe": True}
