"""What runs when: Prefect flows, the command line, and the local stack."""
