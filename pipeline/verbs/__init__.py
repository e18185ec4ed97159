"""What each verb of the command line takes, and whom it calls."""
