"""What happened (floor 5): the record of every request, metrics of it, reports and pages from both."""
