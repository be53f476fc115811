"""Many runs: processes, claims, retries."""
