"""The round protocol as pure steps over a store; every step may run again at any time."""
