"""GA4GH DRS: from ``drs://`` ids to where the bytes are."""
