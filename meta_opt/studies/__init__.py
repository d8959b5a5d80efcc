"""Many runs compared: measuring and report of each study."""
