"""Talking to servers: one HTTP client factory, retries, server pools, bulk requests, chat."""
