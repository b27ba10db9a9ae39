"""Rows of a site, what they become for the model, and the verdict on them."""
