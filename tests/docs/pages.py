"""Pages of Markdown as the docs tests see them: code blocks, links, anchors, code spans, each with its line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "slurm" / "README.md")
)
NO_RUN = "no-run"  # of a fence's info string: what installs, takes long or needs a cluster


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its fence, ``words`` what follows the language there."""

    line: int
    language: str
    words: tuple[str, ...]
    code: str

    @property
    def file(self) -> str:
        """The path in a first line like ``# my_pkg/my_module.py``: what the block is the contents of."""
        match = re.match(r"# (\S+\.(?:py|toml))\n", self.code)
        return match[1] if match else ""

    @property
    def runs(self) -> bool:
        return NO_RUN not in self.words


@dataclass
class Page:
    """One Markdown file."""

    name: str
    text: str
    blocks: list[Block] = field(default_factory=list)
    links: list[tuple[int, str]] = field(default_factory=list)  # targets of links and images
    spans: list[tuple[int, str]] = field(default_factory=list)  # inline code
    anchors: set[str] = field(default_factory=set)  # as GitHub makes them of headings


def page(name: str) -> Page:
    """The page in this file of the checkout."""
    found = Page(name, (ROOT / name).read_text())
    tokens = MarkdownIt("commonmark").enable("table").parse(found.text)
    line = 0
    for before, token in zip([None, *tokens], tokens, strict=False):
        line = token.map[0] + 1 if token.map else line
        if token.type == "fence":
            language, *words = token.info.split() or [""]
            found.blocks.append(Block(line, language, tuple(words), token.content))
        for child in [token, *(token.children or [])]:
            if child.type in ("html_block", "html_inline"):
                found.links += [(line, target) for target in re.findall(r'(?:src|href)="([^"]+)"', child.content)]
        for child in token.children or []:
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                found.links.append((line, str(target)))
            if child.type == "code_inline":
                found.spans.append((line, child.content))
        if before is not None and before.type == "heading_open":
            found.anchors.add(_anchor(token.content, found.anchors))
    return found


def _anchor(heading: str, taken: set[str]) -> str:
    """Lower case, without punctuation, hyphens for spaces; a number where there is such a heading already."""
    text = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    names = [text, *(f"{text}-{k}" for k in range(1, 100))]
    return next(name for name in names if name not in taken)


def commands(block: Block) -> list[tuple[int, str]]:
    """(line, command) of a shell block: continued lines joined, comments left out, several in a line apart."""
    rows, line, begun = [], block.line, ""
    for text in block.code.splitlines():
        line += 1
        begun += re.sub(r"(^|\s)#.*$", "", text).strip()
        if begun.endswith("\\"):
            begun = begun[:-1] + " "
            continue
        rows += [(line, part.strip()) for part in re.split(r"&&|\s{3,}(?=hpc-rl)", begun) if part.strip()]
        begun = ""
    return rows
