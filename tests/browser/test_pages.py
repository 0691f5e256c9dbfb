"""Every page of the registry: it shows something, follows the policy, is accessible, and fits a phone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.conftest import Site, registered_pages
from tests.browser.pages import open_page


@pytest.mark.parametrize("path", registered_pages())
def test_a_page_is_accessible_and_fits_a_phone(
    path: str, site: Site, page: Any, scan: Callable[[Any], None], shoot: Callable[[Any, str], None]
) -> None:
    site.workers.result()
    open_page(page, path, site)

    scan(page)
    shoot(page, path.replace("/:", "-") or "home")
    page.set_viewport_size({"width": 320, "height": 600})
    wider = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wider <= 0
