"""A page of sections: what it may hold, as one HTML file and as Markdown.

What comes from a person or a file is text in a block and is escaped here; only pictures are markup. In any text `...` is a command.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

CARDS = 4  # a table with more columns is a list of cards on a phone


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = ""  # note: smaller; missing: something was never measured; quote: somebody's words

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
    long: Sequence[str] = ()  # columns of text that may wrap anywhere

    tag = "table"

    @property
    def cards(self) -> bool:
        return len(self.head) > CARDS

    def labelled(self, row: Sequence[str]) -> list[tuple[str, str]]:
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
    """One file that asks for no other."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    return environment.get_template("report.html.j2").render(title=title, sections=sections)


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The same without the pictures."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts += [f"## {_plain(section.title)}"] * bool(section.title)
        parts += [_block(block) for block in section.blocks if not isinstance(block, Picture)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Text(text, kind):
            return "> " * (kind == "quote") + _plain(text)
        case Number(title, number, text):
            return f"**{_plain(title)}: {_plain(number)}** {_plain(text)}"
        case Table(head, rows):
            lines = [head, ["---"] * len(head), *rows]
            return "\n".join(
                "| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines
            )
        case Code(text, language):
            fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
            return f"{fence}{language}\n{text.rstrip()}\n{fence}"
        case Picture(_, caption):
            return _plain(caption)


def _plain(text: str) -> str:
    """In one line, with what Markdown and HTML would take for markup escaped; not in `...`."""
    pieces = " ".join(text.split()).split("`")
    pieces[::2] = [
        re.sub(r"([\\\[\]*<>|#])", r"\\\1", piece.replace("&", "&amp;")) for piece in pieces[::2]
    ]
    return "`".join(
        piece.replace("|", "\\|") if place % 2 else piece for place, piece in enumerate(pieces)
    )
