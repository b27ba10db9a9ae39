"""The privacy statement as a web page that a data-protection officer can read, print and file.

One file without scripts, pictures, fonts or links, so that it shows the same anywhere and loads
nothing; what people wrote into a campaign is shown as text, never as markup.
"""

from html import escape

from fl_core.privacy.statement_documents import PrivacyStatement, Promise
from fl_core.privacy.statement_text import to_markdown

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
@media print { body { background: #fff; font-size: 11pt; } main { padding: 0; max-width: none; }
  table { display: table; width: 100%; } .card { break-inside: avoid; } }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_LEVELS = {"record": "one {unit} of a site", "client": "a site as a whole"}


def to_html(statement: PrivacyStatement) -> str:
    """Return the statement as one self-contained page."""
    from markdown_it import MarkdownIt

    title, _, page = to_markdown(statement).partition("\n\n")
    # A name or a reason may hold what looks like a link or a picture; it stays text.
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = reader.disable(["link", "image", "autolink", "html_inline", "html_block"]).render(page)
    heading = escape(title.removeprefix("# "))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<header>\n<h1>{heading}</h1>\n<p>Privacy statement of a model version</p>\n</header>\n"
        f'<section class="cards">\n{_cards(statement)}</section>\n{body}</main>\n</body>\n</html>\n'
    )


def _cards(statement: PrivacyStatement) -> str:
    promises = [p for p in (statement.record, statement.client) if p is not None]
    if not promises:
        return _card("guarantee", "none", "no row of any site is protected", kind="card none")
    cards = [_promise_card(promise) for promise in promises]
    if statement.worst_epsilon is not None:
        more = f"{statement.worst_site}, over all campaigns on its data"
        cards.append(_card("worst site", f"{statement.worst_epsilon:.2f}", more))
    if statement.worst_client_epsilon is not None:
        owner = "the federation's ledger" if statement.federation is not None else "of all sites"
        cards.append(
            _card(
                "worst whole site",
                f"{statement.worst_client_epsilon:.2f}",
                f"{owner}, over all campaigns",
            )
        )
    if statement.not_stated:
        count = f"{len(statement.not_stated)}"
        cards.append(_card("sites not stated", count, ", ".join(statement.not_stated)))
    return "".join(cards)


def _promise_card(promise: Promise) -> str:
    more = f"delta {promise.delta:g}; at most {promise.epsilon_limit:g} in all rounds"
    name = f"epsilon, {_LEVELS[promise.level].format(unit=promise.unit)}"
    return _card(name, f"{promise.epsilon:.2f}", more)


def _card(name: str, value: str, more: str, *, kind: str = "card") -> str:
    return (
        f'<div class="{kind}"><div class="name">{escape(name)}</div>'
        f'<div class="value">{escape(value)}</div><div class="more">{escape(more)}</div></div>\n'
    )
