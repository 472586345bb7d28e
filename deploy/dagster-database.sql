-- Beside the ledger's own database; run once, when PostgreSQL makes its files.
CREATE DATABASE dagster;
