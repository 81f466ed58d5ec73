"""Measures of a method against planted truth: one file per kind of method, and what all of them share."""
