"""What each command of the command line takes, and the one call that it makes; rooms are imported by the command alone."""
