"""The modules of the web page are what their JSDoc says, and components get what they declare: TypeScript checks it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.npm import node_modules, run
from tests.support import ROOT

pytestmark = pytest.mark.long(about_s=30)

FOLDER: Final = Path(__file__).with_name("page_types")
PAGE: Final = ROOT / "dashboard"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A folder with a copy of the page, and the typings of what it has from other projects."""
    shutil.copytree(PAGE, tmp_path / "dashboard")
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    shutil.copytree(FOLDER / "vendor", tmp_path / "dashboard" / "vendor", dirs_exist_ok=True)
    (tmp_path / "node_modules").symlink_to(node_modules(FOLDER))
    return tmp_path


def modules(folder: Path) -> list[Path]:
    """Our own ones."""
    return [path for path in sorted(folder.rglob("*.js")) if path.parent.name != "vendor"]


def check(page: Path) -> None:
    """Write calls in the place of templates, which TypeScript can't look into, and check all modules."""
    run(page, "node", "templates.mjs", *map(str, modules(page / "dashboard")))
    run(page, "node_modules/.bin/tsc", "-p", ".", "--pretty", "false")


def test_no_type_is_wrong(page: Path) -> None:
    check(page)


def test_no_module_is_left_out() -> None:
    for path in modules(PAGE):
        source = path.read_text()
        assert source.startswith("// @ts-check\n"), path
        assert re.findall(r"@ts-(?!check)\w+", source) == [], path


def test_wrong_types_are_found_also_in_templates(page: Path) -> None:
    time = page / "dashboard" / "parts" / "time.js"
    time.write_text(time.read_text() + "\nduration('soon');\nhtml`<p><${Ago} at=${0} since=${1} /></p>`;\n")

    with pytest.raises(AssertionError) as found:
        check(page)

    errors = re.findall(r"^(\S+)\(\d+,\d+\): error", str(found.value), re.MULTILINE)
    assert errors == ["dashboard/parts/time.js"] * 2, found.value
    assert '"since"\' does not exist' in str(found.value)
