"""The devices that embed, each held against the reference."""
