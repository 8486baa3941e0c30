"""Wiring and starting: settings, command line, embedded profile, telemetry."""
