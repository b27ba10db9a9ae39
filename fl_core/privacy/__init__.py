"""Mechanisms, accounting, and the ledger that a site charges before anything leaves."""
