"""A plan of a campaign's cost, as documents: what `fedloom plan` prints, draws and logs."""

from typing import Annotated, Literal

from pydantic import Field

from fl_core.artifacts.documents import Document
from fl_core.campaign.guarantees import Level
from fl_core.updates.records import Accountant

PlanStatus = Literal["stated", "not stated", "does not hold"]


class RoundEpsilon(Document):
    """Epsilon after one round; None is infinite."""

    round: int
    epsilon: float | None = None


class BudgetPlan(Document):
    """One budget: a site's rows, a site's whole data, or the federation's clients.

    Attributes:
        site: Whose; ``federation`` for the ledger that the coordinator charges.
        level: ``record``, or ``client`` for whole sites.
        unit: What its ledger counts.
        status: ``stated``; ``not stated``: the campaign alone is shown, against its own limit;
            ``does not hold``: a statement is there and is not believed, shown likewise.
        complaint: Why it is not believed.
        spent: Epsilon before the planned rounds; None unless stated.
        limit: The site's limit; the campaign's where none is stated; None where that has none.
        delta: At which all epsilons are.
        accountant: Which accountant decides about the last planned round.
        after: Epsilon after the planned rounds; very many are at even distances.
        rounds_left: Further rounds at the campaign's noise; None unless stated.
        refused_in: Round that the site will refuse; None if it refuses none of those planned.
        noise: Noise multiplier of the campaign.
        noise_needed: Least noise multiplier, from the campaign's up, that all planned rounds fit
            with; None if none does, or there is no limit to fit.
        second_campaign_rounds: Rounds that an equal second campaign would still have; None unless
            stated.
        epsilon_pld: After the planned rounds, by PLD; for comparison only where another accountant
            decides. None is infinite, or events of too many kinds to work it out.
        epsilon_rdp: The same by RDP at its best order.
    """

    site: str
    level: Level
    unit: str
    status: PlanStatus
    complaint: str = ""
    spent: float | None = None
    limit: float | None = None
    delta: float
    accountant: Accountant
    after: Annotated[tuple[RoundEpsilon, ...], Field(min_length=1)]
    rounds_left: int | None = None
    refused_in: int | None = None
    noise: float
    noise_needed: float | None = None
    second_campaign_rounds: int | None = None
    epsilon_pld: float | None = None
    epsilon_rdp: float | None = None

    @property
    def epsilon_at_end(self) -> float | None:
        """Epsilon after the last planned round; None is infinite."""
        return self.after[-1].epsilon


class CampaignPlan(Document):
    """What the planned rounds cost everybody.

    Attributes:
        campaign: Its id.
        max_rounds: Rounds that it is calibrated to.
        first_round: Number of the first planned round.
        rounds: How many are planned.
        budgets: Every budget that they are charged to; empty without a guarantee.
        ends_first: Whose budget ends first, of those that are stated.
        ends_first_level: Its level.
        worst_site: Whose epsilon is the largest afterwards, of a limited budget; a record's first.
        worst_epsilon: That epsilon.
        reason: Why there is no guarantee; empty otherwise.
    """

    campaign: str
    max_rounds: int
    first_round: int
    rounds: int
    budgets: tuple[BudgetPlan, ...]
    ends_first: str | None = None
    ends_first_level: Level | None = None
    worst_site: str | None = None
    worst_epsilon: float | None = None
    reason: str = ""


class TuningCost(Document):
    """What it costs to run a campaign several times and keep the best run.

    Attributes:
        mean_runs: Mean of the Poisson number of runs.
        delta: At which all epsilons are.
        one_run: Epsilon of a single run.
        best_of_random: Of releasing the best of a random number of runs (Papernot and Steinke
            2022).
        all_runs: Of releasing ``mean_runs`` runs, composed.
    """

    mean_runs: float
    delta: float
    one_run: float
    best_of_random: float
    all_runs: float
