"""Keeps: resources as records, each transaction whole or not at all."""
