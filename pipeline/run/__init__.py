"""A run: its stages from files to files, and its folder."""
