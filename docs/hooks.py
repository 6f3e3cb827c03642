"""What the site adds to the pages: files of the repository that pages link to, the command line, and links between
docstrings."""

from __future__ import annotations

import argparse
import dataclasses
import html
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files outside of docs/ that become pages, so that links to them work on the site as in the repository.
BESIDE = ("benchmarks/results/*.md", "benchmarks/results/*.svg", "benchmarks/study/REPORT.md", "recipes/README.md",
          "model_cards/README.md", "AGENTS.md", "CONTRIBUTING.md")  # fmt: skip
FOLDER = "repository"
LINK = re.compile(r"(?<=\]\()([^)#\s]+)((?:#[^)\s]*)?)(?=\))")
PAGE = re.compile(r"(?<![\w/\"])docs/([\w/-]+)\.md")
# Shorter than a phone is wide: an option is not broken behind its hyphens.
SHORT = re.compile(r"(?<!<pre>)<code>(?=[^<]{1,28}</code>)")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>(~?)([\w.]+)</code>")


def _beside() -> dict[str, Path]:
    return {path.relative_to(ROOT).as_posix(): path for pattern in BESIDE for path in sorted(ROOT.glob(pattern))}


def on_files(files, config):
    """Add the files beside the documents, and the list of all pages for language models."""
    listed = (ROOT / "llms.txt").read_text(encoding="utf-8")
    listed = re.sub(r"\]\((?!docs/)", f"]({FOLDER}/", listed).replace("](docs/", "](").replace(".md)", ".html)")
    files.append(File.generated(config, "llms.txt", content=listed))
    for name, path in _beside().items():
        files.append(File.generated(config, f"{FOLDER}/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in the command line; let links lead to where their files lie on the site."""
    here = page.file.src_uri
    if here.startswith(f"{FOLDER}/"):
        page.meta["search"] = {"exclude": True}
    for mark, written in (("commands", _commands), ("fields", _fields)):
        if (line := f"<!-- {mark}: written by docs/hooks.py -->") in markdown:
            markdown = markdown.replace(line, written())
    parts = re.split(r"(^```.*?^```\n)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else _with_links(part, here) for part in parts)


def on_page_content(content, page, config, files):
    """Sphinx's roles and pages that docstrings name, as links where the site has them; short code stays whole."""

    def link(match: re.Match) -> str:
        name = match[2].rpartition(".")[2] if match[1] else match[2]
        return f'<autoref identifier="{match[2]}" optional><code>{name}</code></autoref>'

    def page_link(match: re.Match) -> str:
        place = posixpath.relpath(f"{match[1]}.html", posixpath.dirname(page.file.src_uri) or ".")
        return f'<a href="{place}">{match[1]}</a>'

    content = SHORT.sub('<code class="whole">', ROLE.sub(link, content))
    return PAGE.sub(page_link, content) if page.file.src_uri.startswith("reference/") else content


def _with_links(text: str, here: str) -> str:
    beside = _beside()
    real = here.removeprefix(f"{FOLDER}/") if here.startswith(f"{FOLDER}/") else f"docs/{here}"

    def moved(match: re.Match) -> str:
        target, anchor = match.groups()
        if re.match(r"\w+:", target):
            return match[0]
        found = posixpath.normpath(posixpath.join(posixpath.dirname(real), target))
        if found.startswith("docs/"):
            place = found.removeprefix("docs/")
        elif found in beside:
            place = f"{FOLDER}/{found}"
        elif (ROOT / found).exists():
            return f"!{found}"
        else:
            return match[0]
        return posixpath.relpath(place, posixpath.dirname(here) or ".") + anchor

    text = LINK.sub(moved, text)
    # What is no page is named, not linked.
    return re.sub(r"\[([^\]]*)\]\(!([^)]*)\)", lambda m: m[1] if m[1] == m[2] else f"{m[1]} (`{m[2]}`)", text)


def _fields() -> str:
    """What MuscleConfig adds to TrainingArguments."""
    from muscle_hf.training.config import MuscleConfig

    lines = ["| field | default | |", "| --- | --- | --- |"]
    for field in dataclasses.fields(MuscleConfig):
        if field.name in MuscleConfig.__annotations__:
            default = "" if field.default is None else f"`{field.default}`"
            lines.append(f"| `{field.name}` | {default} | {_cell(field.metadata['help'])} |")
    return "\n".join(lines)


def _commands() -> str:
    from muscle_hf.cli.main import COMMANDS, module_of

    sections = []
    for name, says in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"muscle-hf {name}", description=f"{says[0].upper()}{says[1:]}.")
        module_of(name).add_arguments(parser)
        sections.append(_command(name, parser))
    return "\n\n".join(sections)


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"## {name}", "", html.escape(parser.description or ""), ""]
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        rows.append(f"| {_names(action)} | {_cell(_help(action, parser))} |")
    if rows:
        lines += ["| | |", "| --- | --- |", *rows, ""]
    if parser.epilog:
        lines.append(html.escape(re.sub(r"\s+", " ", parser.epilog)).strip())
    return "\n".join(lines)


def _names(action: argparse.Action) -> str:
    shown = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    value = [] if action.nargs == 0 else [shown]
    return " ".join(f"`{word}`" for word in [*action.option_strings, *value]).replace("|", "\\|")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    if action.choices is not None and action.metavar is None:
        text = f"{text}; one of {', '.join(map(str, action.choices))}"
    shown = isinstance(action.default, str | int | float) and not isinstance(action.default, bool)
    if shown and action.option_strings and "default" not in text and f"({action.default}" not in text:
        text += f" (default: {action.default})"
    return text


def _cell(text: str) -> str:
    return html.escape(text).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("\n", " ")
