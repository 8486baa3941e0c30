"""Stateful processes: rating shards, their router and supervisor. Thin Ray shells over plain classes."""
