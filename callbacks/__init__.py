"""What methods share while they train and are evaluated, one concern a file; none of it knows a method."""
