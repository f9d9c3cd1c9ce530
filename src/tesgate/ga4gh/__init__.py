"""The GA4GH documents as the specifications name them; no behaviour."""
