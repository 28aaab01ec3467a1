"""HTTP only: what a request asks and how an answer looks. No rule about statuses lives here."""
