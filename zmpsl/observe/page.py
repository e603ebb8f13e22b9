"""The report's HTML: page, tables and figures, with the style sheet inside."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

__all__ = ["figure", "page", "table"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --paper: #ffffff; --card: #f5f7f9;
  --line: #d9dee3; --grid: #e3e7eb; --empty: #dde2e7; --warn: #fff3cd; --warn-ink: #664d03; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa5b1; --paper: #14181d; --card: #1d2329;
  --line: #323a43; --grid: #2b323a; --empty: #39424c; --warn: #4a3b0c; --warn-ink: #ffe49a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
p { margin: .4rem 0; } .soft, figcaption { color: var(--soft); }
.badge { font-size: .8rem; font-weight: 600; padding: .15rem .6rem; border-radius: 1rem; vertical-align: middle;
  color: #ffffff; background: #6b7580; }
.finished { background: #1a7f4b; } .failed { background: #b3261e; } .interrupted { background: #9a6700; }
.warning { background: var(--warn); color: var(--warn-ink); padding: .6rem .9rem; border-radius: .4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--card); border-radius: .4rem; padding: .5rem .8rem; }
.tiles b { display: block; font-size: 1.15rem; } .tiles span { color: var(--soft); font-size: .85rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1.5rem; }
figure { margin: 1rem 0; } figure > b { display: block; } figcaption { font-size: .9rem; }
svg { width: 100%; max-width: 48rem; height: auto; display: block; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .n { text-align: right; } .total td { font-weight: 600; }
pre { background: var(--card); padding: .8rem; border-radius: .4rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; }
"""


def page(title: str, body: str) -> str:
    """Gives the whole HTML file; the title is plain text, the body is HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - zmpsl report</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def figure(title: str, svg: str, how_to_read: str) -> str:
    """Gives a figure: a plain-text title, the SVG, and a plain-text sentence on how to read it."""
    return (
        f"<figure><b>{escape(title)}</b>\n{svg}<figcaption>{escape(how_to_read, quote=False)}</figcaption></figure>\n"
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = (), total: bool = False
) -> str:
    """Gives a table of plain-text cells.

    Args:
        head: Column names.
        rows: Cells, row by row.
        numbers: Columns set flush right.
        total: Whether the last row is a sum of the others.

    Returns:
        The HTML.
    """

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="n"' if column in numbers else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", column, text) for column, text in enumerate(head)) + "</tr>"]
    for index, row in enumerate(rows):
        kind = ' class="total"' if total and index == len(rows) - 1 else ""
        lines.append(f"<tr{kind}>" + "".join(cell("td", column, text) for column, text in enumerate(row)) + "</tr>")
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"
