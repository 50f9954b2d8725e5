"""Checks of the family ``weights``."""
