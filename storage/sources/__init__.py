"""Where usage comes from besides HTTP: files today, each source a reader that gives batches of columns."""
