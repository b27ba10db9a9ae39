"""Mechanisms, accounting, and the ledger that a site charges before anything leaves."""

from fl_core.privacy import dpsgd as _dpsgd  # noqa: F401  registration
from fl_core.privacy import gaussian as _gaussian  # noqa: F401  registration
