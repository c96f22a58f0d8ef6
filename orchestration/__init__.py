"""Ray: units of work, ledger, quarantine, report."""
