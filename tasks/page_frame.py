"""The frame of a page that people open at home: one file that loads and runs nothing.

No script, picture, font or link, so that it shows the same anywhere and tells nobody that it was
opened; a browser is told to refuse them too. Whatever is put in is text or was escaped by whoever
made it.
"""

from html import escape

_STYLE = """
:root { --ink: #1f2933; --quiet: #616e7c; --line: #dde3ea; --page: #f5f7fa; --card: #ffffff;
  --good: #0b6e4f; --bad: #b42318; --code: #eef2f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --quiet: #9aa5b1; --line: #36424f;
  --page: #14191f; --card: #1d242c; --good: #5fd0a5; --bad: #ff9c90; --code: #28313b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
header p { color: var(--quiet); margin: .2rem 0 0; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.12rem; margin: 2.4rem 0 .6rem; padding-top: 1.2rem;
  border-top: 1px solid var(--line); break-after: avoid; }
.cards { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.6rem 0 1.2rem; }
.card { flex: 1 1 15rem; background: var(--card); border: 1px solid var(--line);
  border-top: 4px solid var(--good); border-radius: 8px; padding: 1rem 1.2rem; }
.card.none { border-top-color: var(--bad); }
.card .value { font-size: 2.3rem; font-weight: 650; line-height: 1.15;
  font-variant-numeric: tabular-nums; }
.card .name { color: var(--quiet); font-size: .85rem; }
.card .more { font-size: .9rem; margin-top: .3rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .88rem;
  margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
td:first-child { font-weight: 550; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
p { overflow-wrap: anywhere; }
code { background: var(--code); border-radius: 4px; padding: .05rem .3rem; font-size: .85em;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.time { white-space: nowrap; font-weight: 400; }
details { margin: .6rem 0; }
summary { cursor: pointer; font-size: .95rem; overflow-wrap: anywhere; }
@media print { body { background: #fff; font-size: 11pt; } main { padding: 0; max-width: none; }
  table { display: table; width: 100%; } .card { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page_of(title: str, *, subtitle: str, body: str) -> str:
    """Return a whole page; ``title`` and ``subtitle`` are text, ``body`` is HTML."""
    heading = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{heading}</h1>\n<p>{escape(subtitle)}</p>\n</header>\n"
        f"{body}</main>\n</body>\n</html>\n"
    )


def card_of(name: str, value: str, more: str, *, kind: str = "card") -> str:
    """Return one figure large, with its name above and a remark below; all are text."""
    return (
        f'<div class="{kind}"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}</div><div class="more">{escape(more)}</div></div>\n'
    )


def table_of(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table; cells are HTML."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"
