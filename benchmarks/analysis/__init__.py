"""What a world model knows: one file makes the record, its tables and its drawing."""
