"""Texts that try to be more than text, and what is in a page that has them."""

from html.parser import HTMLParser

ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    # Odd and uneven backquotes, which would end or begin code elsewhere.
    "a ` <img src=x>",
    "a ` b `` <img src=x> c",
    "``` <b>the rest of the page</b>",
    "~~~ the rest of the page",
    "[a](javascript:alert(1)) ![b](http://x.example/) <http://x.example/>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &#x3c;b>",
    "</td></tr></table><iframe src=//x.example> | a | b",
    "- - - *a* __b__ _c_ $x$ # d",
    "1. --> ]]> <!-- \\",
    "=== \\` <b>",
)
# The tags of a page without pictures.
TAGS = {"b", "blockquote", "body", "code", "div", "h1", "h2", "head", "html", "meta", "p"}
TAGS |= {"section", "strong", "style", "table", "tbody", "td", "th", "thead", "title", "tr"}
ATTRIBUTES = {"charset", "class", "content", "data-label", "lang", "name"}


class Page(HTMLParser):
    """Collects the tags, the attributes and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
