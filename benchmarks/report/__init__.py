"""The page of all records: tables, drawings, published numbers, and the template that puts them together."""
