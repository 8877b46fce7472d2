"""Tests of the commands, from config to run folder."""
