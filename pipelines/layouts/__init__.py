"""Document layouts: template, sample data, golden text."""
