"""From files to a mixture: read records, bring them into one form, render tokens, hold out, build."""
