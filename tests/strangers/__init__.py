"""Losses as strangers write them, who have read the README alone: forty right ones, and forty defective."""
