"""Stateless work over the log: bill runs, documents, imports, statistics."""
