"""Local training at a site, with or without a guarantee."""
