"""Measured claims: each module makes a table of docs/ and says with which command."""
