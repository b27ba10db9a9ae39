"""The policy that `fedloom site init` writes, with every option explained."""

from fl_core.updates.records import Series

POLICY_TEMPLATE = """\
# What this site allows on one dataset. Only people at the site change this file; fedloom reads it
# before every round and never writes it. `fedloom site approve` adds approvals beside it.

# Opaque id of the protected data: lower case, digits, "-". All campaigns on the same rows share
# one ledger, so never give the same rows a second id. It leaves the site in budget statements.
dataset = "{dataset}"

# Whom the limit protects: one row, added or removed. More than one row of a person means that the
# person is protected less than a row; fedloom cannot bound that yet.
unit = "row"
max_rows_per_unit = 1
adjacency = "add_remove"

# The limit over all campaigns on this dataset, ever. A round that would pass it is declined.
# Rough reading: epsilon up to 1 is strong, up to 10 is common in practice, above says little.
epsilon = 8.0
# Probability outside the limit; well below one over the number of rows. A campaign that states a
# larger delta is refused.
delta = 1e-5

# Order at which RDP decides; fixed by the first round too. Left out, it follows from epsilon and
# delta, so write it down if epsilon may be raised later. Any number above 1 is sound; a poor one
# declines earlier than needed.
#rdp_order = 3.0

# Content hashes (SHA-256) of base models that may be trained here, or "*" for any.
base_models = "*"
# Content hashes of the expectation suites that may judge the rows, or "*" for any.
suites = "*"

# Digests of approved campaigns; `fedloom site approve CAMPAIGN` is the usual way.
campaigns = []

# Whether campaigns without any guarantee (privacy.none) may train here. One round of them is
# charged as infinite: afterwards every campaign with a guarantee is declined on this dataset.
without_guarantee = false

# Steps that are counted tightly (by PLD): all with exactly this noise and this sampling rate, at
# most max_steps over all campaigns. Decide before the first round; afterwards a change is refused.
# Without [series], or for any other step, the more cautious RDP decides.
#[series]
#noise_multiplier = 0.8
#sampling_rate = 0.1
#max_steps = 48
"""


def policy_text(*, epsilon: float, delta: float, series: Series | None = None) -> str:
    """Return the template with the site's limits filled in; ``{dataset}`` stays to be filled.

    Args:
        epsilon: Limit over all campaigns.
        delta: Delta of that limit.
        series: Steps to be counted by PLD, or None to leave the section as a comment.
    """
    text = POLICY_TEMPLATE.replace("epsilon = 8.0", f"epsilon = {float(epsilon)!r}")
    text = text.replace("delta = 1e-5", f"delta = {float(delta)!r}")
    if series is None:
        return text
    start = text.index("#[series]")
    return text[:start] + (
        f"[series]\nnoise_multiplier = {series.noise_multiplier!r}\n"
        f"sampling_rate = {series.sampling_rate!r}\nmax_steps = {series.max_steps}\n"
    )
