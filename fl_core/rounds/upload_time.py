"""When a site's answer leaves: at a fixed public time after the plan, where the campaign asks so.

How long a site trains tells how many rows it drew, and how long it reads and judges them how many
there are (SOUNDNESS, rule 19). With ``cohort.upload_after_s`` every answer, an update or a refusal,
leaves at the plan's ``upload_at``. A site that is not ready by then sends when it is, and that time
is outside the claim. The site works the time out itself: a coordinator that could choose it, or
back date a plan, would read every site's readiness.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

from fl_core.campaign.campaign import Campaign
from fl_core.errors import RoundError
from fl_core.rounds.documents import RoundPlan

# Sleeping in short turns, because a machine that was suspended wakes with a late clock.
_TURN_S = 1.0
MAX_AHEAD = timedelta(minutes=70)
"""So that a clock that is an hour behind, by a wrong time zone, leaves no site out."""


class Clock(Protocol):
    """A site's own clock."""

    def now(self) -> datetime:
        """Return the time, UTC."""

    def wait_until(self, moment: datetime) -> None:
        """Return once ``moment`` has come; at once if it is past."""


class WallClock:
    """The machine's clock; waits by sleeping."""

    def now(self) -> datetime:
        """Return the time, UTC."""
        return datetime.now(UTC)

    def wait_until(self, moment: datetime) -> None:
        """Sleep until ``moment``."""
        while (left_s := (moment - self.now()).total_seconds()) > 0:
            time.sleep(min(left_s, _TURN_S))


class PlanClock:
    """A clock that stands at the plan and never waits: for simulations, where nothing leaves."""

    def now(self) -> datetime:
        """Return a time before every upload."""
        return datetime.min.replace(tzinfo=UTC)

    def wait_until(self, moment: datetime) -> None:
        """Return at once."""


WALL_CLOCK = WallClock()
PLAN_CLOCK = PlanClock()


def upload_time(campaign: Campaign, opened: datetime) -> datetime | None:
    """Return when all sites upload in a round that was opened then; None: when they are ready."""
    after_s = campaign.cohort.upload_after_s
    return None if after_s is None else opened + timedelta(seconds=after_s)


def require_own_time(campaign: Campaign, plan: RoundPlan) -> None:
    """Check that the plan's times are those of the campaign that the site approved.

    Raises:
        RoundError: ``upload_at`` is not ``opened + upload_after_s``, or ``deadline`` is not
            ``opened + deadline_s``.
    """
    deadline = plan.opened + timedelta(seconds=campaign.cohort.deadline_s)
    if plan.deadline != deadline:
        raise RoundError(
            f"plan of round {plan.round} has the deadline {_shown(plan.deadline)}, the campaign "
            f"makes it {_shown(deadline)}"
        )
    expected = upload_time(campaign, plan.opened)
    if plan.upload_at != expected:
        raise RoundError(
            f"plan of round {plan.round} has upload_at {_shown(plan.upload_at)}, the campaign "
            f"makes it {_shown(expected)}"
        )


def require_present(plan: RoundPlan, *, now: datetime) -> None:
    """Refuse a plan of the future: a site that took it would work, or wait, for a day to come.

    Raises:
        RoundError: The plan says that it was opened later than now, by more than clocks differ.
    """
    if plan.opened > now + MAX_AHEAD:
        raise RoundError(
            f"plan of round {plan.round} says that it was opened at {_shown(plan.opened)}, and it "
            f"is {_shown(now)} here; if so, set this machine's clock"
        )


def _shown(moment: datetime | None) -> str:
    return "none" if moment is None else moment.isoformat()
