"""What people wrote is text in the report's page and in its Markdown, whatever it is."""

import pytest
from helpers.hostile import ATTACKS, ATTRIBUTES, TAGS, Page
from markdown_it import MarkdownIt

from hpo.report.page import Block, Number, Section, Table, Text, as_html, as_markdown


def blocks_of(text: str) -> list[Block]:
    rows = [[text] * 5, ["1"] * 5]
    return [
        Text(text),
        Text(text, "quote"),
        Number(text, text, text),
        Table([text] * 5, rows, long=[text]),
        Table(["a", "b"], [[text, text]]),
        Text("the end"),
    ]


@pytest.mark.parametrize("text", ATTACKS)
def test_text_is_text_in_the_page(text: str) -> None:
    page = Page(as_html(text, [Section(text, blocks_of(text))]))
    assert page.tags <= TAGS
    assert page.attributes <= ATTRIBUTES
    words = "".join(page.texts)
    # The document's title, 2 headings, 2 paragraphs, 3 of the number, 5 + 5 + 2 cells.
    assert words.count(text) == 20


@pytest.mark.parametrize("text", ATTACKS)
def test_text_is_text_in_markdown(text: str) -> None:
    markdown = as_markdown(text, [Section(text, blocks_of(text))])
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)
    page = Page(rendered)
    assert page.tags <= TAGS
    assert page.attributes == set()
    assert page.texts[-2] == "the end"
    words = "".join(page.texts)
    assert words.count(text) == 19


def test_text_between_single_backquotes_is_code() -> None:
    blocks: list[Block] = [Text("of `a|b` and `<c>`"), Table(["x"], [["`a|b`"]])]
    html = as_html("t", [Section("", blocks)])
    assert "of <code>a|b</code> and <code>&lt;c&gt;</code>" in html
    markdown = as_markdown("t", [Section("", blocks)])
    rendered = MarkdownIt("commonmark").enable("table").render(markdown)
    assert "and <code>&lt;c&gt;</code>" in rendered
    assert "<td><code>a|b</code></td>" in rendered
