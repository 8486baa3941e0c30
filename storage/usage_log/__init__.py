"""The usage log: lanes, segments, snapshots, exact deduplication."""
