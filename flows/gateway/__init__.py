"""The gateway: the one door through which sites reach the coordinator.

A site is known by its TLS certificate or by a signature on each request; what it may see and do is
decided here, per request, and every request is a line in the record. Behind the door are the
campaigns' store and Prefect, and no site ever has an address or a key of either.
"""
