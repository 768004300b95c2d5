"""The engine process: receives commands and descriptors, drives the C workers."""
