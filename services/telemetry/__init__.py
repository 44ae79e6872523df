"""Every metric and log event of Convoy, declared once."""
