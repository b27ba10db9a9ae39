"""Write-once objects: the only state of a campaign."""
