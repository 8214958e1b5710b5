"""Policies compared over seeds: from a folder of ``hbo compare`` to numbers, words and a page."""
