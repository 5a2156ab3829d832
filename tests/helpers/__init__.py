"""What tests of several rooms need: spaces, studies, data, commands, servers."""
