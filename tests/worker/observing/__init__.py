"""What Prometheus and OpenTelemetry are told."""
