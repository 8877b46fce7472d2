"""Tests of ranking a feed."""
