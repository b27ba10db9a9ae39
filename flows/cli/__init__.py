"""The command `fedloom`, one file per group, imported when it is used."""
