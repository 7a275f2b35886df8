"""What the gateway sees of the fleet, and shows of it and of itself."""
