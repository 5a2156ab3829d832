"""The building blocks of a page, and how a page of them becomes one HTML file or Markdown.

Blocks hold plain text, which is escaped here because users and files may have written it. Only
pictures are markup. Between `backquotes`, text is shown as code.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# On a phone, a table with more columns than this becomes a list of cards.
CARDS = 4
# Text that is shown as code. Other backquotes are letters: an odd one would begin code that hides
# the end of what is escaped, three of them would make code of all that follows.
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# Markup of Markdown, and what only at the beginning of a text is markup: lists, rules, titles.
MARKUP = re.compile(r"([\\\[\]*<>|#`~$]|(?<![^\W_])_|_(?![^\W_]))")
LEADING_MARKUP = re.compile(r"^(\d{1,9})?([-+=.)])(?=\W|$)")


@dataclass(frozen=True)
class Text:
    """A paragraph.

    kind: `note` is shown smaller, `missing` says that something has not been measured, `quote` is
    what someone wrote; empty for plain text.
    """

    text: str
    kind: str = ""

    tag = "text"


@dataclass(frozen=True)
class Number:
    """A result that a reader looks for first."""

    title: str
    number: str
    text: str

    tag = "number"


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    # Titles of the columns whose text may wrap anywhere.
    long: Sequence[str] = ()

    tag = "table"

    @property
    def cards(self) -> bool:
        return len(self.head) > CARDS

    def labelled(self, row: Sequence[str]) -> list[tuple[str, str]]:
        """Each cell of a row with the title of its column."""
        return list(zip(self.head, row, strict=True))


@dataclass(frozen=True)
class Picture:
    svg: str
    caption: str

    tag = "picture"


@dataclass(frozen=True)
class Code:
    text: str
    language: str = ""

    tag = "code"


Block = Text | Number | Table | Picture | Code


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block] = field(default_factory=list)


def as_html(title: str, sections: Sequence[Section]) -> str:
    """One self-contained HTML file, which loads nothing else."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pieces"] = pieces
    template = environment.get_template("report.html.j2")
    return template.render(title=title, sections=sections)


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The same page without its pictures."""
    parts = [f"# {_escaped(title)}"]
    for section in sections:
        if section.title:
            parts.append(f"## {_escaped(section.title)}")
        parts += [_markdown(block) for block in section.blocks if not isinstance(block, Picture)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Text(text, "quote"):
            return f"> {_escaped(text)}"
        case Text(text):
            return _escaped(text)
        case Number(title, number, text):
            return f"**{_escaped(title)}: {_escaped(number)}** {_escaped(text)}"
        case Table(head, rows):
            rule = f"|{' --- |' * len(head)}"
            return "\n".join([_markdown_row(head), rule, *map(_markdown_row, rows)])
        case Code(text, language):
            fence = _fence(text)
            return f"{fence}{language}\n{text.rstrip()}\n{fence}"
        case Picture(_, caption):
            return _escaped(caption)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _fence(text: str) -> str:
    """At least three backquotes, and more than any run of backquotes in the text."""
    runs = re.findall("`+", text)
    longest = max(map(len, runs), default=0)
    return "`" * max(3, longest + 1)


def pieces(text: str) -> list[str]:
    """The text in pieces: plain text, code, plain text, and so on."""
    return CODE.split(text)


def _escaped(text: str) -> str:
    """The text in one line, with Markdown and HTML markup escaped outside of `backquotes`."""
    one_line = " ".join(text.split())
    escaped = []
    for place, piece in enumerate(pieces(one_line)):
        is_code = place % 2 == 1
        if is_code:
            # A table's row would end its cell here, even within code.
            escaped.append("`" + piece.replace("|", "\\|") + "`")
        else:
            escaped.append(MARKUP.sub(r"\\\1", piece.replace("&", "&amp;")))
    return LEADING_MARKUP.sub(r"\1\\\2", "".join(escaped))
