"""Checks of the family ``loop``: they read the record of a loop that is watched while it runs."""
