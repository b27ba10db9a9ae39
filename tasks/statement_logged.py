"""Whether what MLflow shows of a version's privacy is what the store's signed documents say."""

from collections.abc import Callable

from fl_core.artifacts.documents import from_bytes
from fl_core.artifacts.store import ObjectStore
from fl_core.assembly import Assembly
from fl_core.privacy.statement import PrivacyStatement
from fl_core.rounds.statement_check import Check, Logged, Verification, verify_version
from tasks.statement_page import to_html
from tasks.tracking_read import LoggedVersion

_PAGE = "logged page"


def verify_logged(
    assembly: Assembly,
    store: ObjectStore,
    round_number: int,
    *,
    logged: LoggedVersion | None,
    on_check: Callable[[str], None] = lambda _what: None,
) -> Verification:
    """Check a version's statement, with all that was logged of it: document, text and page.

    Args:
        assembly: The campaign's parts.
        store: The campaign's store.
        round_number: Round that released the version.
        logged: What MLflow holds; None checks the store alone.
        on_check: Told of every check before it is made.
    """
    if logged is None:
        return verify_version(assembly, store, round_number, on_check=on_check)
    verified = verify_version(
        assembly,
        store,
        round_number,
        logged=Logged(logged.statement, logged.markdown, logged.adapter_sha256),
        on_check=on_check,
    )
    if verified.broken is not None:
        return verified
    check = Check(what=_PAGE, complaint=_page_complaint(logged))
    return verified.model_copy(update={"checks": (*verified.checks, check)})


def _page_complaint(logged: LoggedVersion) -> str:
    if logged.statement is None:
        return "MLflow holds no statement.json of this version"
    statement = from_bytes(PrivacyStatement, logged.statement, what="the logged statement")
    if logged.html is not None and logged.html != to_html(statement):
        return "statement.html does not say what statement.json says"
    return ""
