"""What a site sends, how it is signed, and why it may be refused."""
