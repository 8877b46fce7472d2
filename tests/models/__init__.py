"""Tests of backbones, heads and rankers."""
