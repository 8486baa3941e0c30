"""Ways out of the platform: one module a kind of other side."""
