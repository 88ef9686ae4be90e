"""All that speaks HTTP: the API, upload notifications, the dashboard, and signed webhooks to others."""
