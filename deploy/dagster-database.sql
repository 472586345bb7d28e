-- Dagster's database, beside the ledger's. PostgreSQL runs this once, when it creates its files.
CREATE DATABASE dagster;
