"""Options and scripts of OpenRLHF, verl and TRL → a configuration, with all that could not be carried over."""
