"""Tests of the stream of draws."""
