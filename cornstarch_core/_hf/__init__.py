"""The quirks of transformers, PEFT and torch. No other module imports a private name of theirs.

Versions in comments are those that a quirk was seen on.
"""
