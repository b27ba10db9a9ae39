"""A release on the coordinator's holdout."""
