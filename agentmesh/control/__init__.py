"""The thin client half: find the home's node, start one, call it. Imports nothing heavy."""
