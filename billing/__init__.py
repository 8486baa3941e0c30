"""The pure core: what is owed and why. No I/O, no clock, no Ray, nothing else of the project."""
