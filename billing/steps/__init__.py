"""The dated steps that master data are made of: one function a kind of step, and the table that finds it."""
