"""What every room shares: keys, fingerprint, wire, errors, limits, settings, index schema and the native core."""
