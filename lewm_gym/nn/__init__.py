"""Networks and losses shared by every agent, each written once."""
