"""Who computes it, and when: Celery tasks, ingestion, upkeep, the one-machine stack and the command line."""
