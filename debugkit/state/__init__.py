"""State that a probe may disturb: recorded, and put back."""
