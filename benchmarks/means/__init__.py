"""What measurements share: their report, servers, and peers."""
