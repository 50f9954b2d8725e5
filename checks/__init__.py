"""The built-in checks: one file per check, one folder per family."""
