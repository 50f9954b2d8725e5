"""The command line's parts: what it reads, shows and writes."""
