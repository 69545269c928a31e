"""What makes all Trine services alike: settings, logs, metrics, health, servers, start and drain (see README.md)."""
