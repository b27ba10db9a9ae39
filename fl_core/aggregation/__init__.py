"""How a cohort's updates become one aggregate: one rule per file."""

from fl_core.aggregation import mean as _mean  # noqa: F401  registration
