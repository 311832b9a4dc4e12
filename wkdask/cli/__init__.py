"""The command `wkdask`."""
