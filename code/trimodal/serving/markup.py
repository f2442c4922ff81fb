"""The text of an HTML fragment, as Beautiful Soup's `html.parser` reads it, in a time that its length bounds."""

from __future__ import annotations

import re
import warnings
from typing import Any

from bs4 import BeautifulSoup
from bs4._warnings import UnusualUsageWarning
from bs4.builder._htmlparser import BeautifulSoupHTMLParser, HTMLParserTreeBuilder
from bs4.exceptions import ParserRejectedMarkup

# A message is a customer's text, whatever it looks like; a filter of the process, because one per call races.
warnings.filterwarnings("ignore", category=UnusualUsageWarning)

_MARKUP = re.compile("[<&]")

_FREE, _EACH = 20_000, 32
"""Characters that may be read in vain: so many, and so many for each of the message."""


class TextError(ValueError):
    """A text that its processing steps cannot read; the message never holds the text."""


def normalize_html(message: str) -> str:
    """Returns the text of an HTML fragment, its pieces stripped and joined by one space.

    Raises:
        TextError: the parser rejects the markup, or too much of it is broken.
    """
    if not _MARKUP.search(message):
        return message.strip()
    try:
        soup = BeautifulSoup(message, builder=_Builder())
    except TextError:
        raise
    except (ParserRejectedMarkup, AssertionError, ValueError) as err:
        raise TextError("holds markup that cannot be parsed") from err
    return soup.get_text(separator=" ", strip=True)


class _Parser(BeautifulSoupHTMLParser):
    """Counts what is read in vain.

    For each tag, comment or declaration that is not closed `html.parser` reads the rest of the text, finds no end, and
    goes on behind its first characters: ten seconds for 30 kB of `<a <a <a …` (CVE-2025-6069 names some of the cases).
    """

    wasted = 0

    def parse_starttag(self, i: int) -> int:
        return self._counted(i, super().parse_starttag(i))

    def parse_endtag(self, i: int) -> int:
        return self._counted(i, super().parse_endtag(i))

    def parse_comment(self, i: int, report: bool = True) -> int:
        return self._counted(i, super().parse_comment(i, report))

    def parse_pi(self, i: int) -> int:
        return self._counted(i, super().parse_pi(i))

    def parse_html_declaration(self, i: int) -> int:
        return self._counted(i, super().parse_html_declaration(i))

    def _counted(self, start: int, end: int) -> int:
        if end < 0:
            self.wasted += len(self.rawdata) - start
            if self.wasted > _FREE + _EACH * len(self.rawdata):
                raise TextError("holds too much markup that is not closed; close it or send plain text")
        return end


class _Builder(HTMLParserTreeBuilder):
    """Beautiful Soup's `html.parser` builder with our parser."""

    def feed(self, markup: Any, _parser_class: type[BeautifulSoupHTMLParser] = _Parser) -> None:
        super().feed(markup, _parser_class)
