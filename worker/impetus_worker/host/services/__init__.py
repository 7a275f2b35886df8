"""The worker as a service of the machine, by launchd or systemd."""
