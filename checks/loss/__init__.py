"""Checks of the family ``loss``."""
