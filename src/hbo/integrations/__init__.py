"""The two arrows that cross into a trainer: example ids out, signals in; one file per trainer."""
