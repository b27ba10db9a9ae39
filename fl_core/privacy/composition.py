"""How guarantees of several sites, visits and rounds add up to one.

Sites with disjoint records compose in parallel: the federation costs a record what its own site
spent, so the worst site's epsilon holds for all (McSherry 2009). Rounds and visits of one site
compose in full. No credit is taken for which sites were asked: the cohort is visible in the store,
and the steps of a visit share one coin, so that rates of site and record may not be multiplied.
"""

from collections.abc import Mapping, Sequence

from fl_core.errors import PrivacyError
from fl_core.privacy.accounting import Accountant, epsilon
from fl_core.privacy.events import dpsgd_event, repeated
from fl_core.updates.records import EventRecord


def site_epsilons(
    events: Mapping[str, Sequence[EventRecord]], *, delta: float, accountant: Accountant = "pld"
) -> dict[str, float]:
    """Return every site's epsilon from all events on its data; 0 for a site without any.

    An update that was lost or came late left its site all the same: its events are among them.

    Raises:
        PrivacyError: As ``accounting.epsilon``.
    """
    return {
        site: epsilon(events[site], delta=delta, accountant=accountant) for site in sorted(events)
    }


def federation_epsilon(
    events: Mapping[str, Sequence[EventRecord]], *, delta: float, accountant: Accountant = "pld"
) -> float:
    """Return the epsilon that holds for every record of every site: the worst site's.

    Assumes that no unit is at two sites; one that is pays the composition of both.

    Raises:
        PrivacyError: As ``accounting.epsilon``.
    """
    spent = site_epsilons(events, delta=delta, accountant=accountant)
    return max(spent.values(), default=0.0)


def visits_event(
    *,
    site_sampling_rate: float,
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    rounds: int,
) -> EventRecord:
    """Return the event of rounds in which a site, drawn by a coin, makes several private steps.

    The coin earns nothing: every round is charged as a visit. Multiplying the two rates would be
    unsound for visits of several steps (2.40 where at least 3.46 is spent, in one example).

    Args:
        site_sampling_rate: Probability that the site is asked, in [0, 1]; at 0 it never is.
        noise_multiplier: As ``dpsgd_event``.
        sampling_rate: Poisson probability of a record per step.
        steps: Steps of one visit.
        rounds: Rounds, whether the site was drawn or not.

    Raises:
        PrivacyError: A number outside its range.
    """
    if isinstance(site_sampling_rate, bool) or not 0 <= site_sampling_rate <= 1:
        raise PrivacyError(f"site_sampling_rate is {site_sampling_rate}, it must be from 0 to 1")
    visit = dpsgd_event(noise_multiplier=noise_multiplier, sampling_rate=sampling_rate, steps=steps)
    every = repeated(visit, rounds, named="rounds")
    return every if site_sampling_rate > 0 else repeated(visit, 0)
