"""What the pages for people name is there: files, functions, settings, variables, commands with their options."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from tesgate.cli import agents
from tesgate.cli.main import app
from tesgate.runner.__main__ import _parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "examples/**/*.md")
TREES = ("src", "tests", "docs", "benchmarks", "tools", "deploy", "examples", "openapi", "requirements")
FILES_OF_OTHERS = {"agent.json", "agent.log", "agent.token", "kept.json", "plan.json", "uv.lock", "sort.yaml"}
"""Of operators and of other programs."""
WORDS_OF_OTHERS = {"START_NS", "GITHUB_WORKSPACE", "SubmitAwait", "KillMode", "tes_url", "musllinux_1_1"}
WORDS_OF_OTHERS |= {"ListBucketMultipartUploads", "ListMultipartUploads"}

FILE = re.compile(r"([\w./-]*\w\.(?:py|sql|c|h|sh|json|ya?ml|toml|md|lock|service|env))(?::([\w.]+))?")
SETTING = re.compile(r"([a-z][a-z0-9_]*)(?:\[\])?\.[a-z][a-z0-9_.\[\]]*")
MEMBER = re.compile(r"\b([A-Z][A-Za-z]+)\.([a-z_]\w*)")
WORD = re.compile(r"\b(?!TESGATE_|tesgate_)\w*[A-Za-z]_[A-Za-z]\w*\b|\b[A-Z][a-z]+[A-Z]\w+")


@cache
def pages() -> dict[str, str]:
    """Path below the root -> text, of every page that is written for people."""
    found = [path for place in PAGES for path in ROOT.glob(place)]
    return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(found)}


@cache
def files() -> dict[str, Path]:
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    for tree in TREES:
        found += [path for path in (ROOT / tree).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(ROOT)): path for path in found}


@cache
def program() -> dict[str, str]:
    """Path below the root -> text, of program, tests and tools."""
    kinds = (".py", ".c", ".h", ".sql", ".sh", ".toml", ".yaml", ".yml", "")
    chosen = {name: path for name, path in files().items() if path.suffix in kinds and "/bin/" not in name}
    return {name: path.read_text("utf-8", "replace") for name, path in chosen.items() if not name.startswith("docs/")}


@cache
def words() -> frozenset[str]:
    found = {Path(name).stem for name in files()} | WORDS_OF_OTHERS
    return frozenset(found.union(*(re.findall(r"\w+", text) for text in program().values())))


def spans(text: str) -> list[str]:
    """What stands between backticks in running text."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def commands(text: str) -> list[str]:
    """Lines of code blocks for a shell, and spans."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [*(line for block in blocks for line in block.replace("\\\n", " ").splitlines()), *spans(text)]


@cache
def names_in(name: str) -> frozenset[str]:
    """What a module defines, members also as ``Class.member``; of other files, their words."""
    if not name.endswith(".py"):
        return frozenset(re.findall(r"\w+", files()[name].read_text("utf-8")))
    return frozenset(_defined(ast.parse(program()[name]).body))


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for member in _defined(node.body):
                yield from (member, f"{node.name}.{member}")
            for inner in ast.walk(node):
                if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self":
                    yield f"{node.name}.{inner.attr}"
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                yield target.id


def test_links_lead_somewhere() -> None:
    broken = []
    for page, text in pages().items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            place, _, anchor = link.partition("#")
            target = (ROOT / page).parent / place if place else ROOT / page
            if not target.exists():
                broken.append(f"{page}: {link}")
            elif anchor and anchor not in _anchors(target):
                broken.append(f"{page}: {link} (no such heading)")
    assert not broken, "\n".join(broken)


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_files_and_what_is_named_in_them_are_there() -> None:
    wrong = []
    for page, text in pages().items():
        for span in spans(text):
            found = FILE.fullmatch(span)
            if found is None or found[1].startswith("/") or Path(found[1]).name in FILES_OF_OTHERS or "NNNN" in span:
                continue
            here = [name for name in files() if name == found[1] or name.endswith("/" + found[1])]
            if not here:
                wrong.append(f"{page}: there is no {found[1]}")
            elif found[2] and not any(found[2] in names_in(name) for name in here):
                wrong.append(f"{page}: {found[1]} has no {found[2]}")
    assert not wrong, "\n".join(wrong)


def test_names_of_the_program_are_in_it() -> None:
    wrong = []
    for page, text in pages().items():
        for span in spans(text):
            for owner, member in MEMBER.findall(span):
                here = [name for name, code in program().items() if f"class {owner}" in code and name.endswith(".py")]
                if here and not any(f"{owner}.{member}" in names_in(name) for name in here):
                    wrong.append(f"{page}: {owner} has no {member}")
            wrong += [f"{page}: nothing is called {word}" for word in WORD.findall(span) if word not in words()]
    assert not wrong, "\n".join(wrong)


def test_settings_and_variables_are_there() -> None:
    settings = set(re.findall(r"^\| `([\w.\[\]]+)`", pages()["docs/configuration.md"], flags=re.MULTILINE))
    groups = {name.partition(".")[0].removesuffix("[]") for name in settings if "." in name}
    variables = {f"TESGATE_{name.replace('.', '__').upper()}" for name in settings} | words()
    wrong = []
    for page, text in pages().items():
        for span in spans(text):
            found = SETTING.fullmatch(span.partition(":")[0])
            if found is None or FILE.fullmatch(span) or found[0].startswith("logs[]"):  # of a TES task
                continue
            if found[1] in groups and found[0] not in {*settings, *FILES_OF_OTHERS}:
                wrong.append(f"{page}: there is no setting {found[0]}")
        named = re.findall(r"TESGATE_[A-Z0-9_]*[A-Z0-9]", text)
        wrong += [f"{page}: there is no variable {name}" for name in named if name not in variables]
    assert not wrong, "\n".join(wrong)


def test_commands_and_their_options_are_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    wrong = []
    for page, text in pages().items():
        for line in commands(text):
            for call in re.findall(r"(?:^|[ /])tesgate ((?!is |has )[a-z-]+ ?[^#`;&]*)", line):
                wrong += [f"{page}: tesgate {call}: {fault}" for fault in _faults(call.split())]
            if (made := re.match(r"make ([a-z]+)", line)) and made[1] not in targets:
                wrong.append(f"{page}: {line}")
    assert not wrong, "\n".join(wrong)


def _faults(call: list[str]) -> Iterator[str]:
    """What is wrong with the words of a command line."""
    command = _command(app)
    options = {"--help", *_options(command)}
    while (inside := getattr(command, "commands", None)) and call and not call[0].startswith("-"):
        inner = inside.get(call[0])
        if inner is None:
            yield f"there is no {call[0]}"
            return
        command, call = inner, call[1:]
        options |= _options(command)
        if command.name == "agent":  # all of its words go on, to one of two others
            options |= _options_of_the_runner()
            command = _command(agents.app) if call[:1] in (["list"], ["drain"]) else command
    for word in call:
        for option in word.split("|"):
            if option.startswith("--") and option.partition("=")[0].strip("[].,)") not in options:
                yield f"it has no {option}"


@cache
def _command(of: typer.Typer) -> Any:
    return typer.main.get_command(of)


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


@cache
def _options_of_the_runner() -> frozenset[str]:
    inner = [action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = [parser for action in inner for parser in action.choices.values()]
    return frozenset(option for parser in parsers for action in parser._actions for option in action.option_strings)
