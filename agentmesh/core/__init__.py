"""What every layer stands on: errors, clock, config, paths, tasks, logging, SQLite. Knows no network and no model."""
