"""Every page of the registry for people who enlarge it, who choose the colours, or who use it by keyboard alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import pytest
from playwright.sync_api import expect

from taskpool import WorkflowSpec
from tests.browser.conftest import PHONE, WAIT_MS, Site, registered_pages
from tests.browser.pages import GRAPH, open_page

ENLARGED: Final = {"viewport": {"width": 640, "height": 400}, "device_scale_factor": 2}
"""A window of 1280 by 800 at 200%."""
MOST_TABS: Final = 250

HELPERS: Final = """
window.seen = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
window.nameOf = (element) => `${element.tagName.toLowerCase()}.${element.getAttribute('class') ?? ''}`
  + ` "${(element.getAttribute('aria-label') ?? element.textContent).trim().slice(0, 40)}"`;
window.system = (name) => {
  const probe = document.body.appendChild(document.createElement('i'));
  probe.style.color = name;
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
};
"""

CUT: Final = """() => {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) found.push(`the page is ${root.scrollWidth} px wide`);
  const scrolls = (element) => /auto|scroll/.test(getComputedStyle(element).overflowX);
  for (const element of document.querySelectorAll('body *')) {
    if (!seen(element) || element.closest('.only-read, .skip, .table thead, svg, .uplot')) continue;
    const { overflowX, overflowY, textOverflow, webkitLineClamp } = getComputedStyle(element);
    const { left, right, width } = element.getBoundingClientRect();
    const mayGoOut = (each) => scrolls(each) || getComputedStyle(each).textOverflow === 'ellipsis';
    let around = element.parentElement;
    while (around && !mayGoOut(around)) around = around.parentElement;
    if (width && !around && (left < -1 || right > innerWidth + 1)) found.push(`outside: ${nameOf(element)}`);
    const isWide = element.scrollWidth > element.clientWidth + 1 && element.clientWidth > 0;
    const isHigh = element.scrollHeight > element.clientHeight + 1 && element.clientHeight > 0;
    if (/hidden|clip/.test(overflowX) && isWide && textOverflow !== 'ellipsis') found.push(`cut: ${nameOf(element)}`);
    const isClamped = webkitLineClamp !== 'none';
    if (/hidden|clip/.test(overflowY) && isHigh && !isClamped) found.push(`cut below: ${nameOf(element)}`);
  }
  return found;
}"""
"""What doesn't fit. A text that ends with an ellipsis is cut by intention."""

PALE: Final = """() => {
  const found = [];
  const canvas = system('Canvas');
  const drawn = (width, style, color) => parseFloat(width) > 0 && style !== 'none' && color !== canvas;
  const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);
  for (const button of all('button:not(.link, .json-fold), summary.button')) {
    const { borderTopWidth, borderTopStyle, borderTopColor } = getComputedStyle(button);
    const isShown = drawn(borderTopWidth, borderTopStyle, borderTopColor) || button.matches('.newer');
    if (!isShown) found.push(`no border: ${nameOf(button)}`);
  }
  for (const icon of all('svg.icon')) {
    const { stroke, strokeWidth } = getComputedStyle(icon);
    if (stroke === canvas || stroke === 'none' || !parseFloat(strokeWidth)) found.push(`no icon: ${nameOf(icon)}`);
  }
  const looks = (element) => {
    const { outline, borderTop, borderLeft } = getComputedStyle(element);
    return `${outline} ${borderTop} ${borderLeft}`;
  };
  const PAIRS = ['.rail > a:not(.brand)', 'a.button', '.tabs a', 'tr[data-id]', 'button[aria-pressed]'];
  for (const selector of PAIRS) {
    const current = all(selector).filter((each) => each.matches('[aria-current], [aria-pressed=true], .selected'));
    const others = all(selector).filter((each) => !current.includes(each));
    for (const each of current) {
      if (others.some((other) => looks(other) === looks(each))) found.push(`as the others: ${nameOf(each)}`);
    }
  }
  for (const fill of all('.track > span, .timeline .mark, .histogram .bin')) {
    if (getComputedStyle(fill).backgroundColor === canvas) found.push(`not filled: ${nameOf(fill)}`);
  }
  for (const box of all('.banner, .timeline .span, progress, .error-text, .card')) {
    const { borderTopWidth, borderTopStyle, borderTopColor } = getComputedStyle(box);
    if (!drawn(borderTopWidth, borderTopStyle, borderTopColor)) found.push(`no edge: ${nameOf(box)}`);
  }
  for (const legend of all('.legend')) {
    const colors = [...legend.querySelectorAll('.key')].map((key) => getComputedStyle(key).backgroundColor);
    if (new Set([...colors, canvas]).size <= colors.length) found.push(`its lines look alike: ${nameOf(legend)}`);
  }
  return found;
}"""
"""What can't be told apart in forced colours."""

WALK: Final = """
window.walked = new Set();
window.covers = (element) => {
  const { left, right, top, bottom } = element.getBoundingClientRect();
  const x = (Math.max(left, 0) + Math.min(right, innerWidth)) / 2;
  const y = (Math.max(top, 0) + Math.min(bottom, innerHeight)) / 2;
  const there = document.elementFromPoint(x, y);
  return there && !element.contains(there) && !there.contains(element) ? there : null;
};
window.step = () => {
  const element = document.activeElement;
  if (element === document.body || walked.has(element)) return 'over';
  walked.add(element);
  const { outlineStyle, outlineWidth, outlineOffset } = getComputedStyle(element);
  const rect = element.matches('svg a') && element.querySelector('rect:last-of-type');
  const ring = outlineStyle === 'none' ? 0 : parseFloat(outlineWidth);
  if (ring < 2 && !(rect && parseFloat(getComputedStyle(rect).strokeWidth) >= 3)) return `no ring: ${nameOf(element)}`;
  if (covers(element)) return `covered by ${nameOf(covers(element))}: ${nameOf(element)}`;
  const out = rect ? 0 : Math.max(0, ring + parseFloat(outlineOffset));
  const box = element.getBoundingClientRect();
  for (let around = element.parentElement; around; around = around.parentElement) {
    const { overflowX, overflowY } = getComputedStyle(around);
    if (overflowX === 'visible' && overflowY === 'visible') continue;
    const edge = around.getBoundingClientRect();
    const isCut = box.left - out < edge.left - 0.5 || box.right + out > edge.right + 0.5
      || box.top - out < edge.top - 0.5 || box.bottom + out > edge.bottom + 0.5;
    const isScrolled = /auto|scroll/.test(overflowX + overflowY);
    if (isCut && !isScrolled) return `ring cut off by ${nameOf(around)}: ${nameOf(element)}`;
  }
  return '';
};
const REACHED = 'a[href], button, input, select, textarea, summary, [tabindex="0"]';
window.missed = () => [...document.querySelectorAll(REACHED)]
  .filter((each) => seen(each) && !each.disabled && !walked.has(each)).map(nameOf);
"""


@pytest.fixture
def opened(new_page: Callable[..., Any], site: Site) -> Callable[..., Any]:
    """Opens a page of the registry, in a browser with these options."""

    def opened(path: str, **options: Any) -> Any:
        site.workers.result()
        page = new_page(**options)
        open_page(page, path, site)
        page.evaluate(HELPERS)
        return page

    return opened


@pytest.mark.parametrize("path", registered_pages())
def test_at_200_percent_nothing_is_cut_off(path: str, opened: Callable[..., Any]) -> None:
    page = opened(path, **ENLARGED)

    assert page.evaluate(CUT) == []


@pytest.mark.parametrize("path", ["", "queues", "workflows"])
def test_a_long_name_without_blanks_is_broken(path: str, opened: Callable[..., Any], site: Site) -> None:
    long = "_".join(["long"] * 25)
    site.pool.pause_queue("imports", why=long)
    site.pool.add_workflow(WorkflowSpec(name=long[:60], nodes=GRAPH))
    site.workers.submit(queue=long[:60])

    page = opened(path, viewport=PHONE)
    expect(page.locator("main").get_by_text(long[:60]).first).to_be_visible(timeout=30_000)

    assert page.evaluate(CUT) == []


@pytest.mark.parametrize("name", ["Keyboard", "New key…"])
def test_at_200_percent_a_dialog_is_read_to_its_end(name: str, opened: Callable[..., Any]) -> None:
    page = opened("keys", **ENLARGED)
    if name == "Keyboard":
        page.get_by_role("button", name="Menu").click()
    page.get_by_role("button", name=name).click()
    dialog = page.get_by_role("dialog")
    last = dialog.get_by_role("button").last
    last.focus()

    box, button = dialog.bounding_box(), last.bounding_box()
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 400
    assert button["y"] + button["height"] <= box["y"] + box["height"]
    assert page.evaluate(CUT) == []


@pytest.mark.parametrize("path", registered_pages())
def test_in_forced_colours_all_that_has_a_meaning_is_seen(path: str, opened: Callable[..., Any]) -> None:
    page = opened(path, forced_colors="active")
    boxes = page.locator("tbody input[type=checkbox]")
    if boxes.count() > 1:
        boxes.first.check()

    assert page.evaluate(PALE) == []


def test_in_forced_colours_the_lines_of_a_plot_keep_their_colours(opened: Callable[..., Any]) -> None:
    page = opened("", forced_colors="active")
    page.wait_for_selector(".canvas canvas")

    colors = page.evaluate("""() => [...document.querySelectorAll('.legend')].map((legend) => {
      const drawn = legend.parentElement.querySelector('canvas').getContext('2d');
      const { data } = drawn.getImageData(0, 0, drawn.canvas.width, drawn.canvas.height);
      const found = new Set();
      for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255) found.add(data.slice(at, at + 3).join());
      return found.size;
    })""")

    assert len(colors) == 4
    assert min(colors) >= 2  # the grid, and at least one line


@pytest.mark.parametrize("colours", ["none", "active"])
@pytest.mark.parametrize("path", registered_pages())
def test_a_page_is_walked_by_tab_alone(path: str, colours: str, opened: Callable[..., Any]) -> None:
    page = opened(path, forced_colors=colours)
    page.evaluate(WALK)
    faults = []

    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        found = page.evaluate("step()")
        if found == "over":
            break
        if found:
            faults.append(found)

    assert faults == []
    assert page.evaluate("missed()") == []


ASKS: Final = re.compile("…|^(Pause|Run now|Show|Keyboard)")


@pytest.mark.parametrize("path", registered_pages())
def test_a_dialog_keeps_the_focus_and_gives_it_back(path: str, opened: Callable[..., Any]) -> None:
    page = opened(path)
    buttons = page.get_by_role("button").filter(has_text=ASKS)
    assert buttons.count() > 0

    for at in range(buttons.count()):
        button = buttons.nth(at)
        for how in ("Escape", "a button"):
            expect(button).to_be_enabled(timeout=WAIT_MS)
            button.press("Enter")
            dialog = page.get_by_role("dialog")
            expect(dialog).to_be_visible(timeout=WAIT_MS)
            for _ in range(3):
                page.keyboard.press("Tab")
                assert page.evaluate("document.activeElement.matches('body, dialog, dialog *')")
            if how == "Escape":
                page.keyboard.press("Escape")
            else:
                dialog.get_by_role("button", name=re.compile("^(Cancel|Close|Don't cancel)$")).focus()
                page.keyboard.press("Enter")
            expect(dialog).to_have_count(0, timeout=WAIT_MS)
            expect(button).to_be_focused(timeout=WAIT_MS)
