"""The privacy statement as a page for people, in Markdown."""

from fl_core.privacy.statement_documents import PrivacyStatement


def to_markdown(statement: PrivacyStatement) -> str:
    """Return the statement as one page, the answer first."""
    lines = [
        f"# Privacy of {statement.campaign}, version of round {statement.round}",
        "",
        *_answer(statement),
        "",
        *_sites(statement),
        "## Against whom",
        "",
        *(f"- **{claim.against}**: {claim.holds}" for claim in statement.claims),
        "",
        "## Everything that leaves a site",
        "",
        "| what | how it depends on rows |",
        "| --- | --- |",
        *(f"| {item.what} | {item.protection} |" for item in statement.leaves_site),
        "",
        "Rows, row counts, losses, norms, error texts and log lines stay at the site.",
        "",
        "## Not covered",
        "",
        *(f"- {item}" for item in statement.outside_claim),
        "",
        f"Campaign digest `{statement.campaign_digest}`.",
        "",
    ]
    return "\n".join(lines)


def _answer(statement: PrivacyStatement) -> list[str]:
    noise = statement.noise
    if noise is None or statement.epsilon is None or statement.delta is None:
        return [f"**No guarantee is made for any row.** Reason given: {statement.reason}"]
    unit, adjacency = statement.unit, str(statement.adjacency).replace("_", "/")
    meaning = (
        f"**epsilon {statement.epsilon:.2f} at delta {statement.delta:g}** for each {unit} of each "
        f"site, under {adjacency} of one {unit}: what can be learned from this campaign with that "
        f"{unit} could nearly as well be learned without it."
    )
    how = (
        f"Kept by {noise.mechanism}: {statement.round} rounds of {noise.steps_per_round} steps; in "
        f"each step a {unit} is drawn with probability {noise.sampling_rate:g}, its gradient is "
        f"cut to norm {noise.clip_norm:g}, and noise of standard deviation {noise.noise_stddev:g} "
        f"({noise.noise_multiplier:g} times that norm) is added to the sum. "
        f"Counted by {str(statement.accountant).upper()} for a site that took part in every round."
    )
    return [meaning, "", how]


def _sites(statement: PrivacyStatement) -> list[str]:
    if statement.guarantee == "none":
        return []
    lines = ["## What each site has spent, over all its campaigns", ""]
    if statement.sites:
        lines += [
            "| site | epsilon | limit | delta | counted by | rounds left | ledger entry |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {s.site} | {s.epsilon:.2f} | {s.epsilon_limit:g} | {s.delta:g} "
                f"| {s.accountant.upper()} | {s.rounds_left} "
                f"| {s.ledger_seq} `{s.ledger_head_sha256[:12]}` |"
                for s in statement.sites
            ),
            "",
            (
                f"Worst site: {statement.worst_epsilon:.2f}. Sites hold different rows, so their "
                "numbers do not add up; a person at two sites has both."
            ),
            "",
        ]
    if statement.not_stated:
        lines += [f"Not stated in this round: {', '.join(statement.not_stated)}.", ""]
    return lines
