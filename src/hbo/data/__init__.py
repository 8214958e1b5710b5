"""From files to a mixture: read records, make them alike, render tokens, hold out, build."""
