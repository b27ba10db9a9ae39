"""The policy that `fedloom site init` writes, with every option explained."""

from collections.abc import Iterable

from fl_core.privacy.policy_documents import (
    ClientLimit,
    CoordinatorWitness,
    FolderWitness,
    S3Witness,
    Witness,
)
from fl_core.updates.records import Series

_SERIES = """\
#[series]
#noise_multiplier = 0.8
#sampling_rate = 0.1
#max_steps = 48
"""
_UNIT = """\
unit = "row"
max_rows_per_unit = 1
"""
_CLIENT = """\
#[client]
#epsilon = 4.0
#delta = 1e-2
"""

POLICY_TEMPLATE = f"""\
# What this site allows on one dataset. Only people at the site change this file; fedloom reads it
# before every round and never writes it. `fedloom site approve` adds approvals beside it.

# Opaque id of the protected data: lower case, digits, "-". All campaigns on the same rows share
# one ledger, so never give the same rows a second id, and keep one site's folder per dataset. Rows
# that are added later belong to it and keep what is spent. The id leaves the site in budget
# statements and at witnesses.
dataset = "{{dataset}}"

# Whom the limit protects: one row, or all rows of one value of a column, such as "patient_id". A
# campaign must protect the same unit with the same number of rows. Under "row" a person with many
# rows is protected less than a row. The ledger counts this unit for ever, so `fedloom site init`
# is told of it (--unit) and writes both lines before the ledger begins.
{_UNIT}adjacency = "add_remove"

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

# Whether campaigns without any guarantee for rows (privacy.none, or noise at the coordinator only)
# may train here. One round of them is charged as infinite: afterwards every campaign with a
# guarantee is declined on this dataset.
without_guarantee = false

# "stated": what is spent leaves the site, signed, beside every update, so that epsilon can be
# shown. "withheld": it does not, and the site appears as "not stated"; then name no coordinator as
# a witness below, since its copies of the ledger would say the same.
budget_statement = "stated"

# true: an update that is ready waits until `fedloom site approve CAMPAIGN --round N`, which shows
# what would leave. Without that word by the round's deadline nothing of it leaves, and the round
# stays charged. Decide by what is shown there, never by figures from your rows.
hold = false

# Steps that are counted tightly (by PLD): all with exactly this noise and this sampling rate, at
# most max_steps over all campaigns. Decide before the first round; afterwards a change is refused.
# Without [series], or for any other step, the more cautious RDP decides.
{_SERIES}
# A second limit for this site's whole data as one unit, over all campaigns, ever. With it the site
# takes part only in campaigns that add noise to its whole update here (privacy.client with
# mechanism "local_gaussian"); without it, in none of those. Delta: below one over the number of
# sites that could stand here in your place.
{_CLIENT}
# Who keeps copies of the ledger's signed entries, so that a restored snapshot cannot forget what is
# spent. A campaign with a guarantee needs at least two of them, and one that the coordinator does
# not run must acknowledge every charge before training starts. "coordinator" is the campaigns'
# store; a folder belongs on another disk or machine than this one's backups; a bucket may be your
# own or a peer's. Paths are relative to this file. `fedloom site witness` prepares and checks them.
"""

WITNESS_EXAMPLE = """\
#[[witness]]
#kind = "coordinator"
#[[witness]]
#kind = "folder"
#path = "/mnt/other-disk/fedloom-witness"
#[[witness]]
#kind = "s3"
#bucket = "our-witness"
#prefix = "fedloom"
#endpoint = "https://s3.example.org"
#credentials_file = "witness.credentials"
"""


def policy_text(
    *,
    epsilon: float,
    delta: float,
    series: Series | None = None,
    client: ClientLimit | None = None,
    witnesses: Iterable[Witness] = (),
) -> str:
    """Return the template with the site's limits filled in; ``{dataset}`` stays to be filled.

    Args:
        epsilon: Limit over all campaigns.
        delta: Delta of that limit.
        series: Steps to be counted by PLD, or None to leave the section as a comment.
        client: Limit for the whole site, or None to leave the section as a comment.
        witnesses: Who keeps copies of the ledger's entries; none leaves an example.
    """
    text = POLICY_TEMPLATE.replace("epsilon = 8.0", f"epsilon = {float(epsilon)!r}", 1)
    text = text.replace("delta = 1e-5", f"delta = {float(delta)!r}", 1)
    if series is not None:
        text = text.replace(
            _SERIES,
            f"[series]\nnoise_multiplier = {series.noise_multiplier!r}\n"
            f"sampling_rate = {series.sampling_rate!r}\nmax_steps = {series.max_steps}\n",
        )
    if client is not None:
        text = text.replace(
            _CLIENT, f"[client]\nepsilon = {client.epsilon!r}\ndelta = {client.delta!r}\n"
        )
    return text + witness_tables(witnesses)


def counting_units(text: str, unit: str, max_rows_per_unit: int) -> str:
    """Return a policy's text with whom it protects: ``row``, or so many rows of a column's value.

    To be said before the ledger is begun, whose first entry fixes the unit.
    """
    said = f'unit = "{unit}"\nmax_rows_per_unit = {max_rows_per_unit}\n'
    return text.replace(_UNIT, said, 1)


def witness_tables(witnesses: Iterable[Witness]) -> str:
    """Return witnesses as tables of a policy; none gives the example, commented out."""
    return "".join(_table(each) for each in witnesses) or WITNESS_EXAMPLE


def _table(witness: Witness) -> str:
    lines = ["[[witness]]", f'kind = "{witness.kind}"']
    match witness:
        case CoordinatorWitness():
            pass
        case FolderWitness():
            lines.append(f'path = "{witness.path}"')
        case S3Witness():
            fields = witness.model_dump(mode="json", exclude={"kind"}, exclude_none=True)
            lines += [f'{name} = "{value}"' for name, value in fields.items()]
    return "\n".join(lines) + "\n"
