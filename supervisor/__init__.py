"""The server: decides what runs, ends what must end, answers over HTTP."""
