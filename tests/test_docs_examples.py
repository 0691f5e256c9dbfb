"""Every code block of the documentation is right: CONTRIBUTING.md says how each language is checked.

The commands, paths and variables in the text around the blocks are checked too.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlsplit

import click
import httpx
import jsonschema_rs
import pytest
import yaml

from benchmarks.ports import free_port
from taskpool.cli.__main__ import main
from taskpool.settings import SETTING_FIELDS
from tests.instances import Up
from tests.support import PATIENCE_S

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "deploy/proxy/README.md",
]
TUTORIAL: Final = "docs/tutorial.md"

RUN_BY: Final = {
    "docs/client.md": "test_client.py",
    "docs/next-to-rq.md": "test_system_beside_rq.py",
    "docs/web-frameworks.md": "test_system_web_frameworks.py",
    "docs/webhooks.md": "test_system_webhooks.py",
    TUTORIAL: "test_docs_examples.py",
}
"""Pages whose Python blocks another test runs, because they need more than a service."""

LANGUAGES: Final = {
    *("python", "sh", "console", "json", "http", "yaml", "toml", "js", "dockerfile"),
    *("text", "mermaid"),  # these two aren't checked
}
OTHER_PROGRAMS: Final = {
    *(".", "cd", "export", "mkdir", "git", "docker", "pytest", "gunicorn", "uvicorn", "rq", "rq-dashboard"),
    *("npx", "openapi-python-client", "jq"),
}
"""Programs in `sh` and `console` blocks whose arguments aren't checked."""

OTHER_VARIABLES: Final = {"TASKPOOL_TEST_REDIS", "TASKPOOL_TEST_CONTAINERS", "TASKPOOL_SCREENSHOTS"}
"""Variables of the tests, which are no settings."""

AN_ID: Final = "d217r8m2n3aolstf2ch5"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `line` is that of its opening fence, `schema` what follows the language there."""

    page: str
    line: int
    language: str
    schema: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The name under which other blocks of the page import it."""
        named = re.match(r"# (\S+\.py)\n", self.text)
        return named[1] if named else f"line_{self.line}.py"

    @property
    def folder(self) -> str:
        return "page_" + re.sub(r"\W", "_", self.page.removesuffix(".md")).lower()

    @property
    def padded(self) -> str:
        """The code with the line numbers that it has in the page, for messages."""
        return "\n" * self.line + self.text


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        language, _, schema = found[1].partition(" ")
        line = text.count("\n", 0, found.start()) + 1
        yield Block(str(page.relative_to(ROOT)), line, language, schema, found[2])


BLOCKS: Final = [block for page in PAGES for block in blocks_of(page)]
PYTHON: Final = [block for block in BLOCKS if block.language == "python"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """A `taskpool up` that serves the task files of README.md and of the tutorial."""
    directory = tmp_path_factory.mktemp("service")
    for block in PYTHON:
        if (block.page, block.file) in {("README.md", "images.py"), (TUTORIAL, "report.py")}:
            (directory / block.file).write_text(block.text)
    up = Up(directory, "--tasks", "images.py,report.py", TASKPOOL_WEBHOOK_ALLOW="127.0.0.1")
    try:
        up.await_ready()
        yield up
    finally:
        up.kill()


def test_every_block_is_in_a_language_that_is_checked() -> None:
    unknown = [f"{block.where}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    odd = [
        f"{page.name}: {line}"
        for page in PAGES
        for line in page.read_text("utf-8").splitlines()
        if re.match(r"\s+```|\s*~~~", line)
    ]

    assert len(BLOCKS) > 40
    assert not unknown, "\n".join(unknown)
    assert not odd, "\n".join(odd)


# Python


def write_modules(directory: Path, blocks: Sequence[Block], *, as_packages: bool) -> None:
    """Write the blocks of each page into a folder, with a stand-in for each module that is the reader's own.

    In packages, modules of different pages may have the same name; the imports between them are changed accordingly.
    """
    for folder in {block.folder for block in blocks}:
        of_page = [block for block in blocks if block.folder == folder]
        own = {name for block in of_page for name in re.findall(r"^from (\w+) import .*# your own$", block.text, re.M)}
        modules = own | {Path(block.file).parts[0].removesuffix(".py") for block in of_page}
        for name in own:
            (directory / folder / f"{name}.py").parent.mkdir(parents=True, exist_ok=True)
            (directory / folder / f"{name}.py").write_text(
                "from typing import Any\nfrom unittest.mock import MagicMock\n\n\ndef __getattr__(name: str) -> Any:\n"
                '    if name.startswith("__"):\n        raise AttributeError(name)\n    return MagicMock()\n'
            )
        for block in of_page:
            path = directory / folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            imports = re.compile(rf"^from ({'|'.join(sorted(modules))})(?=[. ])", re.MULTILINE)
            path.write_text(imports.sub(rf"from {folder}.\1", block.padded) if as_packages else block.padded)
            if as_packages or path.parent.name != folder:
                (path.parent / "__init__.py").touch()
        if as_packages:
            (directory / folder / "__init__.py").touch()


RELAXED: Final = """
[[tool.mypy.overrides]]
module = {modules}
allow_untyped_defs = true
allow_incomplete_defs = true
allow_untyped_calls = true
allow_subclassing_any = true
allow_any_generics = true
warn_return_any = false

[[tool.mypy.overrides]]
module = ["django.*"]
ignore_missing_imports = true
"""
"""Examples needn't be annotated, but are checked. All else is as for Taskpool itself, so mypy's cache can be used."""


def test_mypy_finds_no_error_in_the_python_blocks(tmp_path: Path) -> None:
    write_modules(tmp_path, PYTHON, as_packages=True)
    folders = sorted({block.folder for block in PYTHON})
    relaxed = RELAXED.format(modules=json.dumps([f"{folder}.*" for folder in folders]))
    relaxed = re.sub(r"^allow_(\w+) = true", r"disallow_\1 = false", relaxed, flags=re.MULTILINE)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + relaxed)

    ran = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", str(tmp_path / "pyproject.toml"), "--no-error-summary"),
            *[argument for folder in folders for argument in ("-p", folder)],
        ],
        cwd=ROOT, env={**os.environ, "MYPYPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    faults = ran.stdout.replace(f"{tmp_path}/", "") + ran.stderr
    assert not faults, faults


def test_each_table_of_programs_that_other_tests_run_is_right() -> None:
    for page, test in RUN_BY.items():
        assert Path(page).name in (ROOT / "tests" / test).read_text(), f"{test} doesn't run {page}"


def test_the_python_blocks_run(service: Up, tmp_path: Path) -> None:
    blocks = [block for block in PYTHON if block.page not in RUN_BY]
    write_modules(tmp_path, blocks, as_packages=False)
    redis_url = (service.directory / ".taskpool" / "redis.url").read_text().strip()
    here = {
        "http://localhost:8080": f"http://127.0.0.1:{service.port}",
        ', api_key="tp_..."': "",
        "https://example.org/hook": f"http://127.0.0.1:{free_port()}/hook",
        "Redis()": f'Redis.from_url("{redis_url}")',
    }

    def run(block: Block) -> str:
        path = tmp_path / block.folder / block.file
        code = path.read_text()
        for shown, real in here.items():
            code = code.replace(shown, real)
        path.write_text(code)
        ran = subprocess.run(
            [sys.executable, "-W", "error", str(path)],
            cwd=path.parent, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TASKPOOL_REDIS_URL": redis_url, "DATABASE_URL": "database"},
        )  # fmt: skip
        return ran.stderr

    with ThreadPoolExecutor(4) as executor:
        faults = list(executor.map(run, blocks))

    shown = [f"{block.where}: {fault}" for block, fault in zip(blocks, faults, strict=True) if fault]
    assert not shown, "\n".join(shown)


# Commands


def commands_of(block: Block) -> Iterator[list[str]]:
    """Each command of a block, as words. Pipes and lists are several commands."""
    text = block.text.replace("\\\n", " ")
    if block.language == "console":
        text = "\n".join(line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ "))
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):  # not a variable before the command
                words.append(word)


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], str]:
    """Parses a `taskpool` command without running it; says what is wrong."""

    def disarm(command: click.Command) -> None:
        if isinstance(command, click.Group):
            for each in command.commands.values():
                disarm(each)
        else:
            monkeypatch.setattr(command, "invoke", lambda _: None)

    def parse_words(words: Sequence[str]) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO("{}"))
        try:
            main.main([*words], "taskpool", standalone_mode=False)
        except click.ClickException as error:
            return f"{type(error).__name__}: {error.format_message()}"
        return ""

    disarm(main)
    return parse_words


class Api:
    """What a service says of its requests and messages."""

    def __init__(self, url: str) -> None:
        self.document: Any = httpx.get(f"{url}/openapi.json", trust_env=False).json()
        self.messages: Any = httpx.get(f"{url}/asyncapi.json", trust_env=False).json()

    def request_fault(self, method: str, target: str, body: str | None = None) -> str:
        """What is wrong with a request; '' if nothing is."""
        url = urlsplit(target)
        operation, pointer = None, ""
        for path in sorted(self.document["paths"], key=lambda path: path.count("{")):
            pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))
            if method.lower() in self.document["paths"][path] and re.fullmatch(pattern, url.path or "/"):
                operation = self.document["paths"][path][method.lower()]
                pointer = f"#/paths/{quote(path.replace('/', '~1'), safe='~')}/{method.lower()}"
                break
        if operation is None:
            return f"no route for {method} {url.path}"
        known = {self._resolve(parameter)["name"] for parameter in operation.get("parameters", ())}
        for name, _ in parse_qsl(url.query.replace("=...", "=x"), keep_blank_values=True):
            if name not in known:
                return f"{method} {url.path} has no parameter {name!r}"
        if body is None:
            return ""
        return self._fault(self.document, f"{pointer}/requestBody/content/application~1json/schema", json.loads(body))

    def value_fault(self, schema: str, value: Any) -> str:
        """What is wrong with a value that this schema or message describes."""
        if schema in self.document["components"]["schemas"]:
            return self._fault(self.document, f"#/components/schemas/{schema}", value)
        if schema in self.messages["components"]["schemas"]:
            return self._fault(self.messages, f"#/components/schemas/{schema}", value)
        return f"no schema {schema}"

    def _resolve(self, value: Any) -> Any:
        while "$ref" in value:
            found = self.document
            for part in value["$ref"].removeprefix("#/").split("/"):
                found = found[part.replace("~1", "/")]
            value = found
        return value

    def _fault(self, document: Any, pointer: str, value: Any) -> str:
        errors = jsonschema_rs.validator_for({**document, "$ref": pointer}).iter_errors(value)
        return "; ".join(error.message for error in errors)


@pytest.fixture(scope="module")
def api(service: Up) -> Api:
    return Api(f"http://127.0.0.1:{service.port}")


def curl_fault(words: Sequence[str], api: Api) -> str:
    """What is wrong with a `curl` command."""
    method, target, body, headers = None, None, None, []
    rest = iter(words)
    for word in rest:
        match word:
            case "-X" | "--request":
                method = next(rest)
            case "-d" | "--data":
                body = next(rest)
            case "-H" | "--header":
                headers.append(next(rest).lower())
            case _ if re.fullmatch(r"-[sSiNf]+", word):
                pass
            case _ if word.startswith("-") or target is not None:
                return f"unknown to the test: {word}"
            case _:
                target = word
    if body is not None and "content-type: application/json" not in headers:
        return "a JSON body without its Content-Type"
    address = re.fullmatch(r"(?:http://)?(?:localhost|127\.0\.0\.1):8080(/.*)", target or "")
    if address is None:
        return f"not the address of the API: {target}"
    return api.request_fault(method or ("GET" if body is None else "POST"), address[1], body)


def pip_fault(words: Sequence[str]) -> str:
    """What is wrong with `pip install`. Taskpool isn't on the package index; `taskpool` there is another project."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if re.match(r"taskpool\b", word):
            return f"{word} isn't on the package index: install from a path or a URL"
        for extra in re.findall(r"\[([\w,]+)\]", word):
            if unknown := {*extra.split(",")} - {*extras}:
                return f"no extra {unknown}"
    return ""


def command_fault(
    words: Sequence[str], parse: Callable[[Sequence[str]], str], api: Api, *, is_refused: bool = False
) -> str:
    """What is wrong with a command; '' if nothing is. `is_refused`: the page shows it as a request with a fault."""
    program, *arguments = words
    match program.removeprefix(".venv/bin/"):
        case "taskpool":
            return parse(arguments)
        case "scripts/up":
            return parse(["up", *arguments])
        case "curl":
            return "" if is_refused == bool(fault := curl_fault(arguments, api)) else fault or "it isn't refused"
        case "pip":
            return pip_fault(arguments)
        case "python" if arguments[0] == "-m":
            return "" if importlib.util.find_spec(arguments[1]) else f"no module {arguments[1]}"
        case "python":
            return ""
        case script if script.startswith("scripts/"):
            return "" if (ROOT / script).is_file() else "no such script"
        case other:
            return "" if other in OTHER_PROGRAMS else "unknown to the test: if it's right, add it to OTHER_PROGRAMS"


def test_every_command_can_be_run_as_it_is_shown(parse: Callable[[Sequence[str]], str], api: Api) -> None:
    faults = [
        f"{block.where}: {shlex.join(words)}: {fault}"
        for block in BLOCKS
        if block.language in ("sh", "console")
        for words in commands_of(block)
        if (fault := command_fault(words, parse, api, is_refused="urn:taskpool:problem:" in block.text))
    ]

    assert not faults, "\n".join(faults)


# Data


def json_values(text: str) -> Iterator[Any]:
    """The values of a text that has one or several, one after the other."""
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        yield value


def data_fault(block: Block, api: Api) -> str:
    try:
        match block.language:
            case "json":
                values, schemas = list(json_values(block.text)), block.schema.split("|")
                faults = [[api.value_fault(schema, each) for schema in schemas] for each in values if block.schema]
                return "; ".join(" or ".join(each) for each in faults if all(each))
            case "http":
                lines = block.text.splitlines()
                return "; ".join(line for line in lines if not re.match(r"HTTP/1\.1 \d{3}|[A-Za-z-]+: \S|$", line))
            case "yaml":
                yaml.safe_load(block.text)
            case "toml":
                tomllib.loads(block.text)
            case "dockerfile":
                words = re.findall(r"^(\w+)", block.text.replace("\\\n", " "), re.MULTILINE)
                return " ".join({*words} - {"FROM", "RUN", "COPY", "USER", "ENV", "WORKDIR", "CMD", "ENTRYPOINT"})
            case "js" if node := shutil.which("node"):
                checked = subprocess.run(
                    [node, "--check", "-"], input=block.text, capture_output=True, text=True, check=False
                )
                return checked.stderr
    except (ValueError, yaml.YAMLError) as error:
        return str(error)
    return ""


def test_every_block_of_data_parses_and_matches_its_schema(api: Api) -> None:
    faults = [f"{block.where}: {fault}" for block in BLOCKS if (fault := data_fault(block, api))]

    assert not faults, "\n".join(faults)


# The text around the blocks


def spans() -> Iterator[tuple[str, str]]:
    """Each piece of code in a line of text, with its page."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        yield from [(page.name, found) for found in re.findall(r"`([^`\n]+)`", text)]


def span_fault(span: str, parse: Callable[[Sequence[str]], str], api: Api) -> str:
    if re.match(r"taskpool [a-z]", span):
        fault = parse(shlex.split(span)[1:])
        # In a sentence, a command may be shortened.
        return "" if fault.startswith(("MissingParameter", "NoArgsIsHelp")) else fault
    if request := re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) (/\S*)", span):
        return api.request_fault(request[1], request[2])
    return ""


def test_every_command_and_request_in_the_text_exists(parse: Callable[[Sequence[str]], str], api: Api) -> None:
    faults = [f"{page}: {span}: {fault}" for page, span in spans() if (fault := span_fault(span, parse, api))]

    assert not faults, "\n".join(faults)


def test_every_variable_in_the_documentation_is_a_setting() -> None:
    known = {field.env for field in SETTING_FIELDS} | OTHER_VARIABLES

    unknown = [
        f"{page.name}: {name}"
        for page in PAGES
        for name in re.findall(r"\bTASKPOOL_[A-Z_]+[A-Z]\b", page.read_text("utf-8"))
        if name not in known
    ]

    assert not unknown, "\n".join(unknown)


# The tutorial


def test_the_tutorials_commands_print_what_the_tutorial_shows(service: Up, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TASKPOOL_DATA_DIR": str(service.directory / ".taskpool"),
    }
    real_id = AN_ID

    def run(command: str) -> str:
        real = command.replace("127.0.0.1:8080", f"127.0.0.1:{service.port}").replace(AN_ID, real_id)
        ran = subprocess.run(
            ["sh", "-c", real],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        return ran.stdout

    for block in [each for each in BLOCKS if each.page == TUTORIAL]:
        if block.language == "python":
            (tmp_path / block.file).write_text(block.text.replace("127.0.0.1:8080", f"127.0.0.1:{service.port}"))
        if block.language != "console" or "$ taskpool up" in block.text:  # the environment and the service exist
            continue
        command, _, shown = block.text.removeprefix("$ ").replace("\\\n", " ").partition("\n")

        printed = run(command)

        if '"status":"queued"' in printed:
            real_id = json.loads(printed)["id"]
        pattern = re.escape(shown.strip()).replace(re.escape("..."), ".*").replace(AN_ID, real_id)
        assert re.fullmatch(pattern, printed.strip(), re.DOTALL), f"{block.where}: {printed}"
