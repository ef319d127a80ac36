"""The paper's claims, tried again: what one command trains, measures and draws. docs/reproduction.md says how.

Imported by tests only; not part of the installed package.
"""
