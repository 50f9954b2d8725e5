"""Batches, and the samples and labels in them."""
