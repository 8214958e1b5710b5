"""The tests; a folder per kind."""
