"""Figures that can be repeated: each module measures one promise of the architecture beside what a user would pick."""
