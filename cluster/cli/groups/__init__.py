"""Commands with a noun before them, a module a noun or two: options here, the work beside in `cluster/cli`."""
