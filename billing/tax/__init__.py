"""Tax categories, rates by date, and the tax of a document."""
