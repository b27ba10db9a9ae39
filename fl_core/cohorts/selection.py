"""Which of the available sites are asked in a round.

Coins are public: they come from the campaign's digest and the round, so that two coordinators
that open the same round draw the same cohort. No privacy is claimed from them (DESIGN, section 6).
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol

from pydantic import Field

from fl_core.campaign.components import Part, Registry


class Selection(Protocol):
    """Chooses a round's cohort."""

    def select(self, available: Sequence[str], *, coins: str) -> tuple[str, ...]:
        """Return the cohort, sorted.

        Args:
            available: Enrolled sites of the campaign that still have budget.
            coins: Public text that differs between rounds, such as ``<digest>/<round>``.
        """


SELECTIONS: Registry[Selection] = Registry("cohort.selection")


@SELECTIONS.register("everyone")
class Everyone(Part):
    """All available sites."""

    def select(self, available: Sequence[str], *, coins: str) -> tuple[str, ...]:
        """Return all available sites, sorted; ``coins`` are not needed."""
        del coins
        return tuple(sorted(available))


@SELECTIONS.register("uniform")
class Uniform(Part):
    """``size`` sites without replacement, every subset equally likely.

    Attributes:
        size: Number of sites; all of them where fewer are available.
    """

    size: Annotated[int, Field(ge=1)]

    def select(self, available: Sequence[str], *, coins: str) -> tuple[str, ...]:
        """Return the ``size`` sites whose hash with ``coins`` is smallest, sorted."""
        return tuple(sorted(in_public_order(available, coins=coins)[: self.size]))


def in_public_order(sites: Iterable[str], *, coins: str) -> list[str]:
    """Return sites in an order that anybody can work out, every order equally likely."""
    return sorted(sites, key=lambda site: hashlib.sha256(f"{coins}/{site}".encode()).digest())
