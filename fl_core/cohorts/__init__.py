"""Who is asked in a round, and when it goes on without the rest."""
