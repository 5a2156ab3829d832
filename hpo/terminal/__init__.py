"""What a study, a data set and past runs look like on a terminal."""
