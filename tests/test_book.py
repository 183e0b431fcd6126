"""The built site: every promised page, with its figures, its links, and nothing loaded from elsewhere."""

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup, Tag

from tools.address import address
from tools.notebooks import figures
from tools.pages import NOTEBOOKS, PAGES, ROOT

MIB = 2**20


@cache
def parse(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    return {str(tag["id"]) for tag in parse(path).find_all(id=True)}


def article(site: Path, page: str) -> Tag:
    found = parse(site / f"{page}.html").select_one("article.bd-article")
    assert found is not None
    return found


@pytest.mark.parametrize("page", PAGES)
def test_page_has_content(site: Path, page: str) -> None:
    assert (site / f"{page}.html").stat().st_size < 3 * MIB
    text = article(site, page)
    assert len(text.select("h1")) == 1
    assert len(text.get_text().split()) >= (100 if page in NOTEBOOKS else 20)


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_figures_are_shown(site: Path, page: str) -> None:
    """Each stored picture is on the page, byte for byte, with its alternative text."""
    shown = {
        (site / page).parent.joinpath(str(img["src"])).read_bytes(): img.get("alt")
        for img in article(site, page).select("img")
        if not urlsplit(str(img["src"])).scheme
    }
    for cell in nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells:
        for png in figures(cell.get("outputs", [])):
            assert shown.get(png) == cell.metadata.mystnb.image.alt


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_notebook_opens_in_colab_if_the_repository_has_an_address(site: Path, page: str) -> None:
    repository = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
    if not address():
        links = [str(a["href"]) for a in parse(site / f"{page}.html").select(".article-header-buttons a[href]")]
        assert not [link for link in links if urlsplit(link).netloc]
        return
    name = repository["url"].removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{name}/blob/{repository['branch']}/{page}.ipynb"
    assert parse(site / f"{page}.html").select(f'a[href="{link}"]')


def pages(site: Path) -> list[Path]:
    """Every page that was written, those of the index and of the sources too."""
    return [path for path in site.rglob("*.html") if "_static" not in path.parts]


def test_links_lead_somewhere(site: Path) -> None:
    """No `href` or `src` on the site names a file or a place in a file that is not there."""
    dead = []
    for path in pages(site):
        for tag in parse(path).select("[href], [src]"):
            url = urlsplit(str(tag.get("href") or tag.get("src") or ""))
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if url.scheme or url.netloc:
                continue
            if not target.is_file():
                dead.append(f"{path.name} -> {target.name}")
            elif tag.name == "a" and url.fragment and unquote(url.fragment) not in anchors(target):
                dead.append(f"{path.name} -> {target.name}#{url.fragment}")
    assert dead == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = "script[src], link[href]:not([rel~=canonical]), img[src], iframe[src], source[src], video[src]"
    urls = [str(t.get("src") or t.get("href")) for path in pages(site) for t in parse(path).select(loads)]
    assert [url for url in urls if urlsplit(url).netloc] == []
    styles = [path.read_text("utf-8") for path in site.rglob("*.css")]
    assert [found for css in styles for found in re.findall(r"(?:url\(|@import)\s*['\"]?(https?:[^)'\"]+)", css)] == []


def test_search_index_covers_every_page(site: Path) -> None:
    text = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    places = [place if isinstance(place, list) else [place] for place in index["terms"].values()]
    for page in PAGES:
        number = index["docnames"].index(page)
        assert sum(number in place for place in places) >= 10, page


def test_site_is_small(site: Path) -> None:
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 40 * MIB
