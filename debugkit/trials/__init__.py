"""Short training runs."""
