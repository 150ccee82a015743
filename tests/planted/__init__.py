"""Bugs that somebody might write, each a patch, and the tests that must catch them."""
