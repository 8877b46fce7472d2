"""Tests of tables, pages and dashboards."""
