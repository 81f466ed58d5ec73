"""The page of a discovery."""

from html.parser import HTMLParser

from diffprobe.report.pages.discovery import Example, render_discovery
from tests.report.test_discovery_table import DETAIL, result_of


class Tags(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_is_escaped_and_has_neither_script_nor_link():
    example = Example(uri="data:image/png;base64,AA", subject="a <b>cook</b>", hint='"><script>x</script>')
    named = {**DETAIL, "kind": "free", "is_hidden": False, "named_by": [
        {"phrase": "<u>striped</u>", "effect": 1.2, "p": 0.01, "count": 20}],
        "words": {"explained": 0.3, "interval": [0.2, 0.4], "q": 0.01}}  # fmt: skip
    bare = {**DETAIL, "kind": "unstructured", "is_hidden": False, "rates": []}
    page = render_discovery(result_of(DETAIL, named, bare), {"1": {"high": [example], "low": [example, example]}})
    tags = Tags()
    tags.feed(page)
    names = [name for name, _ in tags.found]
    assert not {"script", "b", "u", "a", "link"} & set(names) and "http:" not in page and "https:" not in page
    images = [attributes for name, attributes in tags.found if name == "img"]
    assert len(images) == 3 and all(image["src"].startswith("data:image/png") for image in images)
    assert "&lt;b&gt;cook" in page and "striped&lt;/u&gt;" in page and "a limit" in page and "a note" in page
    assert "Associations" in page and "Free attributes" in page and "Without structure" in page
    assert "Identities" not in page and "Planted for: waiter" in page


def test_a_page_without_findings_or_images_says_so():
    bare = {**DETAIL, "kind": "unstructured", "is_hidden": False, "rates": []}
    page = render_discovery(result_of(bare))
    assert "Nothing found" in page and "<img" not in page


def test_numbers_without_groups_are_means():
    page = render_discovery(result_of({**DETAIL, "has_groups": False, "rarity": None}))
    assert "Mean score" in page and "excess kurtosis -1.0" in page
