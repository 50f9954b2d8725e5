"""One file per output format: each turns a report into text and knows nothing of checks."""
