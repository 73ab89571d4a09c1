"""What a run keeps for those who look at it later: who has which data, what rewriting did to every
answer, what the models say.

`profile.json` holds counts and labels. Texts stand under `clients/<id>/` alone, which is private,
purged, and read by nothing that sends. Nothing kept here comes back into training or results.
"""
