"""Renders the prose of a report: Markdown without HTML, pictures and headings."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from jaxrobust import packages

_SPECIAL = re.compile(r"[\\`*_\[\]<>&]")
_OPENING = re.compile(r"^(\s*)([#+=~-]|\d+(?=[.)](?:\s|$)))", re.MULTILINE)


def escape(text: str) -> str:
    r"""Escapes a text so that Markdown shows it unchanged.

    Example:
      >>> print(escape("*a* <b>"), escape("# c"), escape("1. d"))
      \*a\* \<b\> \# c 1\. d
    """
    text = _SPECIAL.sub(r"\\\g<0>", text)
    return _OPENING.sub(lambda m: m[1] + (f"{m[2]}\\" if m[2].isdigit() else f"\\{m[2]}"), text)


def render(text: str) -> str:
    """Converts a text to HTML: paragraphs, lists, quotations, emphasis, code and links.

    HTML in the text is shown as text, and links to scripts are not made.

    Args:
      text: Markdown.
    """
    rendered: str = _parser().render(text)
    return rendered


def plain(text: str) -> str:
    r"""Removes the marks of Markdown from a text, for a terminal.

    Args:
      text: Markdown.

    Example:
      >>> plain("It is **84 %** \\[of 50\\], see [the table](#rates).")
      'It is 84 % [of 50], see the table.'
    """
    inline = [token.children for token in _parser().parse(text) if token.type == "inline"]
    # The end of a line is a token without content.
    return "\n".join(
        "".join(one.content or "\n" * one.type.endswith("break") for one in part) for part in inline
    )


def plain_line(text: str) -> str:
    """Removes the marks of Markdown from a title; "1. The first" does not begin a list there.

    Args:
      text: Markdown.

    Example:
      >>> plain_line("1. The *first*")
      '1. The first'
    """
    (line,) = _parser().parseInline(text)
    return "".join(one.content for one in line.children)


def links(text: str) -> Iterator[str]:
    """Yields the addresses of the links in a text.

    Args:
      text: Markdown.
    """
    for token in _parser().parse(text):
        for child in token.children or ():
            if child.type == "link_open":
                yield str(child.attrs["href"])


@functools.cache
def _parser() -> Any:
    with packages.extra("reports", "Markdown"):
        from markdown_it import MarkdownIt

    # Indented text is not code, because templates indent the bodies of loops.
    return MarkdownIt("commonmark", {"html": False}).disable(
        ["code", "heading", "lheading", "html_block", "html_inline", "image", "reference"]
    )
