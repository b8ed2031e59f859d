"""Losses as strangers write them, who have read the README alone: forty that are right, forty that are not."""
