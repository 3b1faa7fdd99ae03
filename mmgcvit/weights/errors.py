class WeightsError(ValueError):
    """Weights that cannot be had, read or used; the message says what to do."""
