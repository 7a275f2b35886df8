"""Several Macs: what a fleet makes of a backlog."""
