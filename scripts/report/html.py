"""What every page of a report is made of: its style, tables, figures, and the document around them."""

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.5rem 4rem; color: #1c1c1c; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, ul { max-width: 46rem; }
.about { color: #555; margin: 0 0 1.4rem; }
.answer { font-size: 1.1rem; border-left: 4px solid #0072b2; padding: .1rem 0 .1rem 1.1rem;
  max-width: 50rem; }
.answer p { max-width: none; }
.loud { font-weight: 600; border: 2px solid #d55e00; background: #fff4ec; padding: .6rem .9rem; max-width: 50rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #444; font-size: .9rem; max-width: 46rem; margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { text-align: left; color: #444; padding-bottom: .4rem; max-width: 46rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #ddd;
  font-weight: normal; }
thead th { border-bottom: 1.5px solid #555; font-weight: 600; vertical-align: bottom; }
.number { text-align: right; }
td.number, tbody th { white-space: nowrap; }
tr.first th, tr.first td { font-weight: 600; }
code, pre { font: .85rem/1.45 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: .7rem .9rem; white-space: pre-wrap; }
.settings td { overflow-wrap: anywhere; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } figure img { max-height: 23cm; }
  .scroll { overflow: visible; } img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def escaped(value: Any) -> str:
    """Text as a page may hold it."""
    return escape(str(value))


def html_table(
    head: list[str], rows: list[list[Any]], caption: str = "", numbers: tuple[int, ...] = (), strong: bool = False
) -> str:
    """Write a table whose first column heads its rows; `numbers`: columns set to the right."""

    def cell(tag: str, column: int, value: Any, scope: str = "") -> str:
        style = ' class="number"' if column in numbers else ""
        return f"<{tag}{scope}{style}>{escaped(value)}</{tag}>"

    lines = ['<div class="scroll"><table>']
    if caption:
        lines.append(f"<caption>{escaped(caption)}</caption>")
    if head:
        cells = "".join(cell("th", i, name, ' scope="col"') for i, name in enumerate(head))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for number, row in enumerate(rows):
        cells = cell("th", 0, row[0], ' scope="row"')
        cells += "".join(cell("td", i, value) for i, value in enumerate(row[1:], start=1))
        start = '<tr class="first">' if strong and not number else "<tr>"
        lines.append(f"{start}{cells}</tr>")
    return "\n".join([*lines, "</tbody></table></div>"])


def html_figure(png: bytes, caption: str, alternative: str) -> str:
    """A picture that the page holds, with its caption and what is read out instead."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escaped(alternative)}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def setting_rows(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Rows of name and value; names of nested ones joined by dots."""
    rows: list[list[str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += setting_rows(value, f"{prefix}{name}.")
        else:
            listed = isinstance(value, list | tuple)
            rows.append([f"{prefix}{name}", ", ".join(map(str, value)) if listed else str(value)])
    return rows


def document(title: str, body: list[str]) -> str:
    """A page of these parts, with all that it needs in it."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
