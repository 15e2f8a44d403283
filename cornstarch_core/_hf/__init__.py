"""Code for the special cases of transformers, PEFT and torch. No other module imports private names of these libraries.

A version number in a comment is the version of the library in which the behaviour was observed.
"""
