"""Price models: a quantity or the events themselves become an exact amount."""
