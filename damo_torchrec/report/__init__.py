"""A store in one page of HTML: what it holds, how it grew, and what memory budget it should have."""
