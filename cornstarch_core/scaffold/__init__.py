"""The rooms behind ``cornstarch plugins new``: check the names, and write a new plugin's project. No torch in here."""
