"""EN 16931 invoices: one model of business terms, bytes out per format."""
