"""Models on disk and on the hub: names, headers, downloads, the cache."""
