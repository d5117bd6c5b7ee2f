"""The computer that is measured on: what is recorded of it, its sensors, what would disturb a measurement."""
