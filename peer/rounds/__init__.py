"""A round: one attempt at an outer step. Group, exchange, verdict."""
