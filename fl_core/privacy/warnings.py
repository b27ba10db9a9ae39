"""Settings that can be kept and mean nothing: said before a run, never a reason to stop it.

Three kinds are found from the campaign's public numbers alone. An epsilon above 50 promises nothing
that a person could feel. A delta of one over the number of rows is kept by publishing a row; that
number is not known here, so the public divisor over the sampling rate stands in for it. A signal
that noise buries teaches the model nothing: the ratio below is the best that a step could have, so
where even that is under 0.01 the budget buys no learning.

    RecordDp           batch_size / (noise_multiplier sqrt(d))     one step of the smallest site
    ClientDp, central  sites / (noise_multiplier sqrt(d))          one release
    ClientDp, local    sqrt(sites) / (noise_multiplier sqrt(d))    one release, each site's noise

d is the number of trained numbers. The signal is that of all units aligned and at full clip (their
number taken as the public divisor), ``B C``; the noise has norm ``z C sqrt(d)`` in expectation.
Real gradients point in different directions, so the real ratio is lower.
"""

import math

from fl_core.adapters.peft_layout import tensor_shapes
from fl_core.artifacts.documents import Document
from fl_core.campaign.campaign import Campaign
from fl_core.campaign.guarantees import ClientDp, RecordDp
from fl_core.privacy.clipping import adaptive_clip_noise

LARGEST_EPSILON_WITH_MEANING = 50.0
SMALLEST_SIGNAL = 0.01
_LOCAL = "local_gaussian"


class CampaignWarning(Document):
    """One setting that is allowed and likely a mistake.

    Attributes:
        field: Field of the campaign.
        found: What was found, with numbers.
        remedy: What to change.
    """

    field: str
    found: str
    remedy: str

    @property
    def line(self) -> str:
        """The warning as one line for people."""
        return f"{self.field}: {self.found}; {self.remedy}"


def campaign_warnings(campaign: Campaign) -> tuple[CampaignWarning, ...]:
    """Return what is absurd about a campaign's numbers, in a fixed order; empty is usual.

    The signal can be judged once the noise is stated and the modules are known, so after locking;
    before, only epsilon is.
    """
    record, client = campaign.privacy.record, campaign.privacy.client
    found = [
        *([] if record is None else _epsilon("privacy.record", record.epsilon)),
        *([] if record is None else _delta(campaign, record)),
        *([] if client is None else _epsilon("privacy.client", client.epsilon)),
    ]
    dimension = _dimension(campaign)
    if dimension is None:
        return tuple(found)
    if record is not None and record.noise_multiplier is not None:
        found += _record_signal(campaign, record, dimension)
    if client is not None and client.noise_multiplier is not None:
        found += _client_signal(campaign, client, dimension)
    return tuple(found)


def record_signal(campaign: Campaign, record: RecordDp, dimension: int) -> float:
    """Return the best signal-to-noise ratio of one step, at the site with the smallest divisor.

    Args:
        campaign: States the divisors.
        record: With its noise stated.
        dimension: Trained numbers d.
    """
    multiplier = float(record.noise_multiplier or math.inf)
    if record.adaptive_clip is not None:
        multiplier = adaptive_clip_noise(
            noise_multiplier_total=multiplier,
            clipped_count_stddev=record.adaptive_clip.count_stddev,
        )
    smallest = min(campaign.training.divisor(site) for site in campaign.sites)
    return smallest / (multiplier * math.sqrt(dimension))


def client_signal(campaign: Campaign, client: ClientDp, dimension: int) -> float:
    """Return the best signal-to-noise ratio of one release over all sites.

    Args:
        campaign: States the sites.
        client: With its noise stated.
        dimension: Trained numbers d.
    """
    n_sites = len(campaign.sites)
    # Every local share is as large as the one central noise, and they add up as variances.
    signal = math.sqrt(n_sites) if client.mechanism == _LOCAL else n_sites
    return signal / (float(client.noise_multiplier or math.inf) * math.sqrt(dimension))


def _dimension(campaign: Campaign) -> int | None:
    if campaign.adapter.modules is None:
        return None
    sizes = (
        tensor_shapes(campaign.adapter, campaign.task, round_number=number) for number in (1, 2)
    )
    # A rule that alternates factors is judged by the larger one, as its noise is.
    return max(sum(math.prod(shape) for shape in shapes.values()) for shapes in sizes)


def _epsilon(section: str, epsilon: float) -> list[CampaignWarning]:
    if epsilon <= LARGEST_EPSILON_WITH_MEANING:
        return []
    return [
        CampaignWarning(
            field=f"{section}.epsilon",
            found=f"{epsilon:g} is above {LARGEST_EPSILON_WITH_MEANING:g} and protects nobody in "
            "any way that can be explained",
            remedy="state 10 or less, or [privacy.none] with the reason",
        )
    ]


def _delta(campaign: Campaign, record: RecordDp) -> list[CampaignWarning]:
    largest = max(campaign.training.divisor(site) for site in campaign.sites)
    one_row = record.sampling_rate / largest
    if record.delta < one_row:
        return []
    return [
        CampaignWarning(
            field="privacy.record.delta",
            found=f"{record.delta:g} is not under sampling_rate / batch_size = {one_row:.2g}, "
            "about one over the number of rows: publishing one row would keep it",
            remedy="state 1e-5 or less",
        )
    ]


def _record_signal(campaign: Campaign, record: RecordDp, dimension: int) -> list[CampaignWarning]:
    ratio = record_signal(campaign, record, dimension)
    return _signal(
        "privacy.record.noise_multiplier",
        ratio,
        f"batch_size / (noise_multiplier sqrt({dimension})) at the site with the smallest divisor",
        "use larger batches, a lower adapter.rank, adapter rule 'ffa_lora' or 'head', fewer steps, "
        "or a higher epsilon",
    )


def _client_signal(campaign: Campaign, client: ClientDp, dimension: int) -> list[CampaignWarning]:
    sites = "sqrt(sites)" if client.mechanism == _LOCAL else "sites"
    return _signal(
        "privacy.client.noise_multiplier",
        client_signal(campaign, client, dimension),
        f"{sites} / (noise_multiplier sqrt({dimension}))",
        "ask more sites, train fewer numbers (adapter.rank, adapter rule 'head'), fewer rounds, "
        "or a higher epsilon",
    )


def _signal(field: str, ratio: float, formula: str, remedy: str) -> list[CampaignWarning]:
    if ratio >= SMALLEST_SIGNAL:
        return []
    return [
        CampaignWarning(
            field=field,
            found=f"signal to noise is at best {ratio:.2g}, under {SMALLEST_SIGNAL:g} "
            f"({formula}), so next to nothing can be learned",
            remedy=remedy,
        )
    ]
