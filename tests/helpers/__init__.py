"""What tests of several rooms share: spaces, studies, data, commands, servers."""
