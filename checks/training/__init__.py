"""Checks of the family ``training``."""
