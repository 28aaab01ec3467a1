"""What is known of every task, and where it is kept. Imports neither handlers nor supervisor."""
