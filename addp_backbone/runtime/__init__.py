"""What every run shares: from a command line to mmengine's Runner, seeding, saving, mixed precision, learning rates."""
