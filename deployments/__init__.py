"""HTTP in and out: API, front end, access. Served by Ray Serve."""
