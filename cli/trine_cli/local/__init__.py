"""Real servers and services as child processes: for `trine up`, for `make demo` and for every integration test."""
