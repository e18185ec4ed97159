"""What a run leaves in its folder for others to read."""
