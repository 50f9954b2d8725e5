"""What the values of weights tell."""
