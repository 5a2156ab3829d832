"""The commands, by what they are about: parse, call one function, print."""
