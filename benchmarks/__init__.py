"""Protocols, measurements and the report: what turns an agent into a number that can be trusted."""

__part_of__ = "lewm_gym"
