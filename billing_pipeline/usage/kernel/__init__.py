"""The fast exact count of plain Parquet days, behind one function."""
