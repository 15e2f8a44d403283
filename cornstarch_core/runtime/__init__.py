"""The rooms behind plugins.py: find plugins, check them, activate them, record them. No torch in here."""
