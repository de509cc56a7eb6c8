"""What the subcommands do when their options were checked. Torch, Captum and matplotlib load with these modules."""
