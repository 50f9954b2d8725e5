"""Checks of the family ``tokenizer``."""
