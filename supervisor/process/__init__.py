"""The only place that knows pids and signals: launcher, fork server, child and what passes between them."""
