"""The processes of a role: starting them, calling them, their deadlines and failures."""
