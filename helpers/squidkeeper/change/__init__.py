"""What an edit of a policy means, learned from what was recorded."""
