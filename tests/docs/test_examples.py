"""The examples of README and tutorials do what the pages say, on a real node and a real chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, examples, reading

PAGES = ("README.md", "docs/tutorial/first-payment.md", "docs/how-to/write-a-plugin.md", "docs/how-to/keys.md")
PORTS = ("8545", "50001")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, tmp_path: Path) -> None:
    blocks = examples(ROOT / page)
    assert blocks, f"{page} has no example that is run"
    with reading(tmp_path, PORTS) as reader:
        for block in blocks:
            reader.follow(block)


def test_no_other_page_claims_that_its_examples_are_run() -> None:
    pages = {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")}
    claiming = {str(page.relative_to(ROOT)) for page in pages if examples(page)}
    assert claiming == set(PAGES)
