"""The server-rendered front end, one folder per module."""
