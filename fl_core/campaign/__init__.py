"""What is to be trained, by whom, under which guarantee."""
