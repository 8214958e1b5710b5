"""Tests of difficulty metrics and groups."""
