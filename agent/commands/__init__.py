"""One module for each `trireme` command."""
