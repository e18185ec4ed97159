"""report.html as Chromium shows it. Skipped, and so not passed, without a browser: `make page` has the rest."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.record.proof import Answered
from pipeline.show.page.page import page_of
from tests.pipeline.show.test_page import DISPUTED, in_folder, judged, with_stages
from tests.pipeline.show.test_report import manifest
from tests.small import sparse_images

NAMES = "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)
if CHROMIUM is None:
    pytest.skip(f"needs one of {', '.join(NAMES)}, as Debian's package chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra [browser]")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra [browser]")

WIDE, PHONE, SMALLEST = (1280, 900), (400, 800), (320, 600)
OVERLAPS = """[...document.querySelectorAll('svg .name')].filter((name) => {
  const value = name.nextElementSibling;
  return name.getBoundingClientRect().right > value.getBoundingClientRect().left;
}).map((name) => name.textContent)"""
"""Names in drawings that run into their values."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a page with all that a page may have: pictures, disputes, failed gates, a long name."""
    folder = in_folder(tmp_path_factory.mktemp("page") / "run", sparse_images(8), ["a", "b", "c", "d", "e"])
    found = with_stages(manifest(passed=False, name="vit_base_patch16_rope_reg1_gap_256.sbb_in1k"), "model.onnx")
    graph = Answered(found.verdict.synthetic, found.verdict.real)
    (folder / "report.html").write_text(page_of(judged(found, disputed=DISPUTED, engine_graph=graph), folder))
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(
    ("size", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (PHONE, "light"), (PHONE, "dark"), (SMALLEST, "light")]
)
def test_the_page_is_for_everyone(size: tuple[int, int], scheme: str, address: str, browser: Any) -> None:
    """No sideways scrolling, no words over words, nothing on the console, no request, nothing that axe finds; with all
    details open too."""
    page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=scheme)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(address)
    assert page.evaluate(OVERLAPS) == []
    for _ in range(2):
        assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert [line for line in said if line != address and not line.startswith("data:image/webp")] == []
    page.close()


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_words_are_explained_by_keyboard_and_pointer(size: tuple[int, int], address: str, browser: Any) -> None:
    """Each dotted word shows its meaning inside the window when it has the focus, and when it is pointed at."""
    page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)))
    page.goto(address)
    words = page.locator("a.term")
    assert words.count() > 10
    for number in range(words.count()):
        word = words.nth(number)
        word.focus()
        page.keyboard.press("Shift")  # the keyboard is in use: what has the focus shows it
        shown = word.evaluate("(each) => getComputedStyle(each, '::after').content")
        assert word.get_attribute("data-about").replace('"', '\\"') in shown
        assert page.evaluate("document.scrollingElement.scrollWidth") <= size[0]
    words.first.hover()
    assert words.first.evaluate("(each) => getComputedStyle(each, '::after').position") == "fixed"
    page.close()


def test_the_page_prints(address: str, browser: Any) -> None:
    """On paper it is black on white, with the table of all figures, which a screen folds away."""
    page = browser.new_page(color_scheme="dark")
    page.goto(address)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.get_by_role("region", name="All figures of both models").is_visible()
    assert len(page.pdf()) > 20_000
    page.close()
