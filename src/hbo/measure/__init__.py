"""Numbers read from a model: response losses, gradient norms, scores, probes."""
