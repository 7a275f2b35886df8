"""HTTP: the gateway's price, and other servers beside it."""
