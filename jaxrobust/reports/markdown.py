"""Prose of a report: Markdown without HTML, pictures and headings, which are blocks of their own."""

import functools
import re
from collections.abc import Iterator
from typing import Any

from jaxrobust import packages

_SPECIAL = re.compile(r"[\\`*_\[\]<>&]")
_OPENING = re.compile(r"^(\s*)([#+=~-]|\d+(?=[.)](?:\s|$)))", re.MULTILINE)


def escape(text: str) -> str:
    r"""Text that Markdown shows as it is: for names and sentences that a reader did not write.

    Example:
      >>> print(escape("*a* <b>"), escape("# c"), escape("1. d"))
      \*a\* \<b\> \# c 1\. d
    """
    text = _SPECIAL.sub(r"\\\g<0>", text)
    return _OPENING.sub(lambda m: m[1] + (f"{m[2]}\\" if m[2].isdigit() else f"\\{m[2]}"), text)


def render(text: str) -> str:
    """HTML of a text: paragraphs, lists, quotations, emphasis, code and links.

    What is HTML in the text is shown as text, and a link leads to no script.

    Args:
      text: Markdown.
    """
    rendered: str = _parser().render(text)
    return rendered


def plain(text: str) -> str:
    r"""The text without its marks, for a terminal.

    Args:
      text: Markdown.

    Example:
      >>> plain("It is **84 %** \\[of 50\\], see [the table](#rates).")
      'It is 84 % [of 50], see the table.'
    """
    inline = [token.children for token in _parser().parse(text) if token.type == "inline"]
    # A line's end is a token of its own, and has no content.
    return "\n".join(
        "".join(one.content or "\n" * one.type.endswith("break") for one in part) for part in inline
    )


def plain_line(text: str) -> str:
    """A line's text without its marks, for titles: what would begin a list is no list there.

    Args:
      text: Markdown.

    Example:
      >>> plain_line("1. The *first*")
      '1. The first'
    """
    (line,) = _parser().parseInline(text)
    return "".join(one.content for one in line.children)


def links(text: str) -> Iterator[str]:
    """The addresses that a text leads to.

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

    # Indented text is no code: templates indent what they repeat.
    return MarkdownIt("commonmark", {"html": False}).disable(
        ["code", "heading", "lheading", "html_block", "html_inline", "image", "reference"]
    )
