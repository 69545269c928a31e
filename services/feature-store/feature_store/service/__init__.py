"""The feature-store service: shows views, features and freshness over gRPC and REST; writes nothing."""
