"""The privacy statement as a web page that a data-protection officer can read, print and file.

One file without scripts, pictures, fonts or links, so that it shows the same anywhere and loads
nothing; what people wrote into a campaign is shown as text, never as markup.
"""

from fl_core.privacy.statement_documents import PrivacyStatement, Promise
from fl_core.privacy.statement_text import to_markdown
from tasks.page_frame import card_of, page_of

_LEVELS = {"record": "one {unit} of a site", "client": "a site as a whole"}


def to_html(statement: PrivacyStatement) -> str:
    """Return the statement as one self-contained page."""
    from markdown_it import MarkdownIt

    title, _, page = to_markdown(statement).partition("\n\n")
    # A name or a reason may hold what looks like a link or a picture; it stays text.
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = reader.disable(["link", "image", "autolink", "html_inline", "html_block"]).render(page)
    return page_of(
        title.removeprefix("# "),
        subtitle="Privacy statement of a model version",
        body=f'<section class="cards">\n{_cards(statement)}</section>\n{body}',
    )


def _cards(statement: PrivacyStatement) -> str:
    promises = [p for p in (statement.record, statement.client) if p is not None]
    if not promises:
        return card_of("guarantee", "none", "no row of any site is protected", kind="card none")
    cards = [_promise_card(promise) for promise in promises]
    if statement.worst_epsilon is not None:
        more = f"{statement.worst_site}, over all campaigns on its data"
        cards.append(card_of("worst site", f"{statement.worst_epsilon:.2f}", more))
    if statement.worst_client_epsilon is not None:
        owner = "the federation's ledger" if statement.federation is not None else "of all sites"
        cards.append(
            card_of(
                "worst whole site",
                f"{statement.worst_client_epsilon:.2f}",
                f"{owner}, over all campaigns",
            )
        )
    if statement.not_stated:
        count = f"{len(statement.not_stated)}"
        cards.append(card_of("sites not stated", count, ", ".join(statement.not_stated)))
    return "".join(cards)


def _promise_card(promise: Promise) -> str:
    more = f"delta {promise.delta:g}; at most {promise.epsilon_limit:g} in all rounds"
    name = f"epsilon, {_LEVELS[promise.level].format(unit=promise.unit)}"
    return card_of(name, f"{promise.epsilon:.2f}", more)
