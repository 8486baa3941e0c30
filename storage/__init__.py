"""Everything that outlives a process: SQL, usage log, archive, object store."""
