"""A run from its configuration to its report: prepare, plan, score, train, evaluate."""
