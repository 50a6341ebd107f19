"""Docstrings as the site shows them: examples as code, and [shapes] that are no links."""

import re

import griffe

CODE = re.compile(r"(`[^`]*`)")


class Docstrings(griffe.Extension):
    """Rewrites each docstring once, before mkdocstrings reads its sections as Markdown."""

    def on_object(self, *, obj, **kwargs):
        """Puts `>>>` blocks in code fences, and escapes brackets elsewhere."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text):
    """The docstring with its examples fenced, and brackets outside of code escaped."""
    lines, fenced = [], False
    for line in text.split("\n"):
        example = line.lstrip().startswith(">>>")
        indent = line[: len(line) - len(line.lstrip())]
        if example and not fenced:
            lines.append(f"{indent}```pycon")
            fenced = True
        if fenced and not line.strip():
            lines.append(f"{lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]}```")
            fenced = False
        if fenced:
            lines.append(line)
        else:
            parts = CODE.split(line)
            lines.append("".join(p if p.startswith("`") else p.replace("[", r"\[") for p in parts))
    if fenced:
        lines.append(f"{lines[-1][: len(lines[-1]) - len(lines[-1].lstrip())]}```")
    return "\n".join(lines)
