"""What is computed: settings, ledger, storage, detection, classification, rendering. Knows neither Celery nor Flask."""
